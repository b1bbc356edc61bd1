"""What the configs of a folder say: tie flags, vocabulary, quantisation, and whether every JSON file can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from suture.values import Check, Checkpoint, Json, Operation, Plan, TensorInfo
from suture.verification import reading

CONFIG = "config.json"
TIE_FLAG = "tie_word_embeddings"
HEADS = ("lm_head.weight", "embed_out.weight", "proj_out.weight", "cls.predictions.decoder.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "shared.weight")
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "model_type")

_OF_OTHER_PARTS = re.compile(r"vision|audio|image|speech")  # configs of parts that have no vocabulary

KeyPath: TypeAlias = tuple[str, ...]


def at_every_level(config: Json, key: str) -> dict[KeyPath, Any]:
    """All values of a key, by their path, at the top and in nested configs."""
    return dict(_walk(config, key, ()))


def _walk(node: Mapping[str, Any], key: str, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    for name, value in node.items():
        if name == key:
            yield (*path, name), value
        if isinstance(value, Mapping):
            yield from _walk(value, key, (*path, name))


def flags(config: Json) -> dict[KeyPath, bool]:
    """Every tie flag of a config."""
    return {path: bool(value) for path, value in at_every_level(config, TIE_FLAG).items()}


def planned_config(plan: Plan, checkpoint: Checkpoint) -> Json:
    """The config that the plan writes, or the base's when it copies that."""
    return cast("Json", json.loads(plan.texts[CONFIG])) if CONFIG in plan.texts else checkpoint.config


def check(plan: Plan, checkpoint: Checkpoint, folder: Path, tensors: Mapping[str, TensorInfo]) -> tuple[Check, ...]:
    """All checks of config.json. `tensors` are those found in the folder."""
    config = reading.read_json(folder / CONFIG)
    if config is None:
        return (Check("config.json", False, 1, "missing, or not a JSON object"),)
    planned = planned_config(plan, checkpoint)
    return (
        _sizes(planned, config),
        _ties(plan, checkpoint, planned, config, _heads(folder, tensors)),
        _vocabulary(plan, checkpoint, config),
        _quantization(planned, config),
    )


def _name(path: KeyPath) -> str:
    return ".".join(path)


def _sizes(planned: Json, config: Json) -> Check:
    """Sizes and layer counts are the planned ones wherever both configs state them."""
    wrong, n_checked = [], 0
    for key in SIZES:
        theirs = at_every_level(config, key)
        for path, value in at_every_level(planned, key).items():
            if path in theirs:
                n_checked += 1
                wrong += [f"{_name(path)} is {theirs[path]!r}, not {value!r}"] if theirs[path] != value else []
    return Check("config.json", not wrong, n_checked, "; ".join(wrong))


def _ties(plan: Plan, checkpoint: Checkpoint, planned: Json, config: Json, heads: _Heads) -> Check:
    """No flag says tied where the plan unties or beside a head of its own; none says untied where there is no head."""
    found, wanted = flags(config), flags(planned)
    tied = [path for path, flag in found.items() if flag and not _OF_OTHER_PARTS.search(_name(path))]
    told: list[str] = []
    if plan.untied:
        told += [f"{_name(path)} is true, but the plan unties {' and '.join(plan.untied[0])}" for path in tied]
    elif heads.differing is not None and tied and heads.differing not in checkpoint.tensors:
        told.append(f"{heads.differing} is stored and differs from the embeddings, but {_name(tied[0])} is true")
    elif not heads.stored:
        off = [path for path, flag in found.items() if not flag and wanted.get(path, False)]
        told += [f"{_name(path)} is false, but no output head is stored" for path in off]
    absent = [_name(path) for path in wanted if path not in found]
    detail = "; ".join(told) or (f"not stated: {', '.join(absent)}" if absent else "")
    return Check("tie flags", not told, len(found), detail)


@dataclass(frozen=True, slots=True)
class _Heads:
    """Output heads that are stored, and the first that is not a copy of the embedding table of its shape."""

    stored: tuple[str, ...]
    differing: str | None


def _heads(folder: Path, tensors: Mapping[str, TensorInfo]) -> _Heads:
    heads = [t for _, t in sorted(tensors.items()) if t.name.endswith(HEADS)]
    tables = [t for _, t in sorted(tensors.items()) if t.name.endswith(EMBEDDINGS)]
    alone = [h.name for h in heads if not any(reading.same_bytes(folder, h, t) for t in tables if t.shape == h.shape)]
    return _Heads(tuple(h.name for h in heads), alone[0] if alone else None)


def _vocabulary(plan: Plan, checkpoint: Checkpoint, config: Json) -> Check:
    """Where vocab_size was the number of rows of a tensor whose rows change, it is the new number."""
    found, before = at_every_level(config, "vocab_size"), at_every_level(checkpoint.config, "vocab_size")
    wrong = []
    for op in plan.operations:
        rows = _row_change(op, checkpoint)
        if rows is None:
            continue
        old, new = rows
        wrong += [
            f"{_name(path)} is {value!r}, but {op.tensor} has {new} rows"
            for path, value in found.items()
            if value != new and before.get(path) == old
        ]
    return Check("vocabulary", not wrong, len(found), "; ".join(wrong))


def _row_change(op: Operation, checkpoint: Checkpoint) -> tuple[int, int] | None:
    base = checkpoint.tensors.get(op.tensor)
    if base is None or not op.shape or base.shape[:1] == op.shape[:1]:
        return None
    return base.shape[0], op.shape[0]


def _quantization(planned: Json, config: Json) -> Check:
    key = "quantization_config"
    found, wanted = at_every_level(config, key), at_every_level(planned, key)
    told = [f"{_name(path)}: the weights are not quantised" for path in found if path not in wanted]
    told += [f"{_name(path)} is not the base's" for path in wanted if found.get(path) != wanted[path]]
    return Check("quantization", not told, len(found), "; ".join(told))
