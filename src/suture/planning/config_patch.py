"""The generated files of a merged model: config.json where it changes, and the index of a sharded checkpoint. Pure."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from suture.formats.checkpoint import CONFIG, INDEX, SINGLE
from suture.formats.dtypes import DTYPES
from suture.planning.layout import Layout
from suture.values import Checkpoint, Json, Operation, Options


def generated_texts(
    checkpoint: Checkpoint, laid: Layout, tie_flags: Iterable[tuple[str, ...]], options: Options
) -> dict[str, str]:
    """File name → text, for the files that are not copies."""
    texts = {}
    config = patched_config(checkpoint, laid.operations, tie_flags, options)
    stored = checkpoint.config if checkpoint.quantization is None else checkpoint.quantization.config
    if config != stored:
        texts[CONFIG] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    index = index_of(checkpoint, laid)
    if index is not None:
        texts[checkpoint.index_file or INDEX] = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    return texts


def patched_config(
    checkpoint: Checkpoint, operations: Iterable[Operation], tie_flags: Iterable[tuple[str, ...]], options: Options
) -> Json:
    """config.json of the merged model: tie flags off where a pair came apart, the vocabulary's size, the dtype."""
    config = copy.deepcopy(dict(checkpoint.config))
    for path in tie_flags:
        _set(config, path, False)
    for old, new in sorted(_resized_rows(checkpoint, operations)):
        _replace_vocabulary(config, old, new)
    if options.dtype is not None:
        _replace_dtype(config, DTYPES[options.dtype].torch_name)
    return config


def _resized_rows(checkpoint: Checkpoint, operations: Iterable[Operation]) -> set[tuple[int, int]]:
    resized = set()
    for op in operations:
        before = checkpoint.tensors.get(op.tensor)
        if before is not None and len(op.shape) == 2 and op.shape[0] != before.shape[0]:
            resized.add((before.shape[0], op.shape[0]))
    return resized


def _set(config: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    *parents, key = path
    for name in parents:
        config[name] = dict(config.get(name) or {})
        config = config[name]
    config[key] = value


def _replace_vocabulary(config: dict[str, Any], old: int, new: int) -> None:
    """`vocab_size` at every level where it named the old number of rows."""
    for key, value in config.items():
        if key == "vocab_size" and value == old:
            config[key] = new
        elif isinstance(value, dict):
            _replace_vocabulary(value, old, new)


def _replace_dtype(config: dict[str, Any], dtype: str) -> None:
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and isinstance(value, str):
            config[key] = dtype
        elif isinstance(value, dict):
            _replace_dtype(value, dtype)


def _n_parameters(checkpoint: Checkpoint, laid: Layout, before: object) -> object:
    """How many values the model has. The number of codes does not tell: it is what the base says, and growth."""
    n_values = sum(op.rows * op.cols for op in laid.operations)
    if isinstance(before, int) and any(op.part_of for op in laid.operations):
        return before + n_values - sum(tensor.n_values for tensor in checkpoint.tensors.values())
    return n_values


def index_of(checkpoint: Checkpoint, laid: Layout) -> Mapping[str, Any] | None:
    """The index of an output that needs one, or whose base has one; None for a single file without."""
    one_by_one = {operation.file for operation in laid.operations} == {SINGLE}
    if len(laid.files) <= 1 and (checkpoint.index_file is None or one_by_one):
        return None
    total = sum(op.end - op.begin for op in laid.operations)
    metadata = {**checkpoint.index_metadata, "total_size": total}
    if "total_parameters" in metadata:
        metadata["total_parameters"] = _n_parameters(checkpoint, laid, metadata["total_parameters"])
    return {
        "metadata": metadata,
        "weight_map": {op.tensor: op.file for op in sorted(laid.operations, key=lambda o: o.tensor)},
    }
