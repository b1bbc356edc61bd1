"""After a save: every tensor of the file against memory, byte for byte, and the saved config against the live one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from suture.errors import NotSaved
from suture.formats import TensorReader, read_adapter
from suture.targets import changed_fields
from suture.training.live import DTYPES, WRAPPERS, Live
from suture.values import Adapter, Json, TensorInfo

COPIES = (".base_layer", ".original_module", ".token_adapter.base_layer")  # under which PEFT keeps the base's matrix


@dataclass(frozen=True, slots=True)
class Saved:
    """What a folder holds: sha256 of every tensor by key, and its adapter's config."""

    sha256: Mapping[str, str]
    config: Json


def read_back(folder: Path, live: Live, whole: Mapping[str, torch.Tensor] | None = None) -> Saved:
    """Read a saved adapter from disk and compare it with memory.

    Args:
        whole: tensors by key that are sharded in memory, as `gathered` made them whole.

    Raises:
        NotSaved: a tensor is missing, empty, of another shape or dtype, or differs in a byte; or the config differs.
    """
    adapter = read_adapter(folder, name=live.adapter)
    wrong = [*_keys(adapter, live), *_config(adapter.config, live.config)]
    hashes: dict[str, str] = {}
    with TensorReader(adapter.folder) as reader:
        for key, info in sorted(adapter.tensors.items()):
            parameter = (whole or {}).get(key, in_memory(key, live))
            if parameter is None:
                wrong.append(f"{key}: in the file, but not in the model")
                continue
            hashes[key], problem = _compare(reader, info, parameter)
            wrong += [f"{key}: {problem}"] if problem else []
    if wrong:
        shown = wrong[:8] + ([f"… and {len(wrong) - 8} more"] if len(wrong) > 8 else [])
        raise NotSaved(
            "what was saved is not what was trained:\n" + "\n".join(f"  {line}" for line in shown),
            where=str(folder),
            expected="every trained tensor in the file, byte for byte as in memory",
            do="The model is still in memory: repair what is named and save again. Nothing else was touched.",
        )
    return Saved(hashes, adapter.config)


def tensor_sha256(parameter: torch.Tensor) -> str:
    """sha256 of a tensor's bytes in memory."""
    return hashlib.sha256(_bytes(parameter).data).hexdigest()


def gathered(live: Live) -> dict[str, torch.Tensor]:
    """The adapter's tensors that are sharded over processes, whole, by key. Every process must call this."""
    sharded = {key: getattr(p, "full_tensor", None) for key, p in live.held.items()}
    return {key: full() for key, full in sharded.items() if callable(full)}


def _keys(adapter: Adapter, live: Live) -> Iterable[str]:
    """Tensors that the file lacks. A parameter with two keys may be stored under either."""
    stored = {id(live.held[key]) for key in adapter.tensors if key in live.held}
    for key, parameter in live.unique().items():
        if id(parameter) not in stored:
            yield f"{key}: not in the file"


def _config(saved: Json, live: Json) -> Iterable[str]:
    for name, ours, theirs in changed_fields(live, saved):
        yield f"adapter_config.json: {name} is {theirs!r}, in memory {ours!r}"


def in_memory(key: str, live: Live) -> torch.Tensor | None:
    """The tensor of the model that a key of the file stands for: trained, or a copy of the base's matrix.

    With save_embedding_layers PEFT writes ends that train in full a second time, under `modules_to_save`.
    """
    trained = key.replace(".modules_to_save.", ".")
    if trained in live.held:
        return live.held[trained]
    module, _, kind = key.rpartition(".")
    wanted = {key, *(f"{module}{copy}.{kind}" for copy in COPIES)}
    parameters: Iterable[tuple[str, torch.nn.Parameter]] = live.model.named_parameters(remove_duplicate=False)
    places = ((".".join(part for part in name.split(".") if part not in WRAPPERS), p) for name, p in parameters)
    return next((parameter for place, parameter in places if place in wanted), None)


def _compare(reader: TensorReader, info: TensorInfo, tensor: torch.Tensor) -> tuple[str, str]:
    """sha256 of a tensor in the file, and what is wrong with it, if anything."""
    dtype = DTYPES.get(tensor.dtype, str(tensor.dtype))
    problem = ""
    if info.shape != tuple(tensor.shape):
        problem = f"{list(info.shape)} in the file, {list(tensor.shape)} in memory"
    elif info.dtype != dtype:
        problem = f"{info.dtype} in the file, {dtype} in memory"
    memory = _bytes(tensor) if not problem else None
    total, begin, n_wrong = hashlib.sha256(), 0, 0
    for block in reader.blocks(info):
        total.update(block.data)
        if memory is not None:
            n_wrong += int(np.count_nonzero(block != memory[begin : begin + block.size]))
        begin += block.size
    if not problem and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        problem = "values that are not finite"
    if n_wrong:
        problem = f"{n_wrong:,} of {info.n_bytes:,} bytes differ"
    return total.hexdigest(), problem


def _bytes(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A tensor's bytes, without a copy where it lies on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return np.asarray(flat.numpy())
