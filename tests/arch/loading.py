"""Checkpoints written and read without Suture, to hold a description against."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from suture.values import Arch, Json, Part, TensorInfo

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}
Tensors = dict[str, torch.Tensor]


def read(folder: Path) -> tuple[Json, Tensors]:
    """config.json, and every tensor of every shard."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return json.loads((folder / "config.json").read_text()), tensors


def write(folder: Path, config: Json, tensors: Tensors) -> Path:
    """A model folder with one weight file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def headers(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    """What a header says of these tensors."""
    return {n: TensorInfo(n, NAMES[t.dtype], tuple(t.shape), "model.safetensors", 0, 0) for n, t in tensors.items()}


def shapes(**tensors: tuple[int, ...]) -> dict[str, TensorInfo]:
    """Headers of tensors that exist nowhere."""
    return {n: TensorInfo(n, "BF16", s, "model.safetensors", 0, 0) for n, s in tensors.items()}


def values(model: nn.Module) -> Tensors:
    """Every parameter and saved buffer of a model by each of its names."""
    return {**model.state_dict(), **dict(model.named_parameters(remove_duplicate=False))}


def left(part: Part, tensors: Tensors) -> torch.Tensor:
    """The left-hand side of a part's equation."""
    tensor = tensors[part.tensor]
    return tensor if part.rows is None else tensor[slice(*part.rows)]


def right(part: Part, params: Tensors) -> torch.Tensor:
    """The right-hand side of a part's equation."""
    value = params[part.param][tuple(i if isinstance(i, int) else slice(*i) for i in part.index)]
    return value.mT if part.transpose else value


def wrong_parts(arch: Arch, tensors: Tensors, model: nn.Module) -> list[Part]:
    """The parts whose equation does not hold, element by element."""
    params = values(model)
    return [p for p in arch.parts if not torch.equal(left(p, tensors), right(p, params))]


def uncovered(arch: Arch, model: nn.Module) -> set[str]:
    """Parameters with an element that no part fills, except those stored under a tied partner's name."""
    filled = {n: torch.zeros(v.shape, dtype=torch.int8) for n, v in values(model).items()}
    for part in arch.parts:
        right(part, filled).add_(1)
    once = {n for n, count in filled.items() if bool((count == 1).all())}
    partners = {n for tie in arch.ties if once & set(tie.members) for n in tie.members}
    return filled.keys() - once - partners
