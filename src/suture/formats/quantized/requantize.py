"""Packed weights that are quantised anew: which of their parts change, by whom, and what new parts stand for."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from suture.formats.dtypes import DTYPES, Array
from suture.formats.files import Buffer, bytes_of
from suture.formats.quantized import scheme_of
from suture.formats.quantized.base import Parts, Quantizer, Read
from suture.values import NOT_STORED, Packed, TensorInfo


def quantizer_of(packed: Packed) -> Quantizer | None:
    """What quantises such a weight; None where nothing does."""
    return scheme_of(packed.scheme).quantizer


def changing(packed: Packed) -> Mapping[str, TensorInfo]:
    """The parts that change when the weight is quantised anew, by role. None where nothing can do that."""
    quantizer = quantizer_of(packed)
    return {role: packed.parts[role] for role in quantizer.roles if role in packed.parts} if quantizer else {}


def libraries(weights: Iterable[Packed]) -> str:
    """Names and versions of the packages that quantise these weights."""
    found = {quantizer.library for packed in weights if (quantizer := quantizer_of(packed)) and quantizer.library}
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(found))


def dequantized(info: TensorInfo, packed: Packed, read: Read, n_rows: int, parts: Parts) -> Array:
    """What new parts of some rows stand for, in float32, before it is rounded to the dense dtype.

    Args:
        parts: what `Quantizer.open` gave for a run of `n_rows` rows.
    """
    held = {role: np.ascontiguousarray(items) for role, (_, items) in parts.items()}

    def from_memory(part: TensorInfo, offset: int, buffer: Buffer) -> None:
        if part.file:
            read(part, offset, buffer)
            return
        view = bytes_of(buffer)
        view[:] = held[part.name].reshape(-1).view(np.uint8)[offset : offset + len(view)].data

    made = {role: _in_memory(role, packed.parts[role], items) for role, items in held.items()}
    n_values = n_rows * info.shape[-1]
    shape = (n_values // math.prod(info.shape[1:]), *info.shape[1:])
    here = replace(info, dtype="F32", shape=shape, begin=NOT_STORED, end=NOT_STORED + 4 * n_values)
    scheme = scheme_of(packed.scheme)
    return scheme.open(here, replace(packed, parts={**packed.parts, **made}), from_memory)(0, n_rows)


def _in_memory(role: str, part: TensorInfo, items: Array) -> TensorInfo:
    """The header of items that no file holds."""
    assert items.dtype == DTYPES[part.dtype].storage, f"{role}: {items.dtype}, stored as {part.dtype}"
    return TensorInfo(role, part.dtype, items.shape, "", 0, items.nbytes)
