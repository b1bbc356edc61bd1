"""Whether two stored tensors are equal, byte for byte, and which values are no numbers: read in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from suture.formats.reading import TensorReader
from suture.values import TensorInfo

BLOCK_BYTES = 1 << 20
SAMPLE_BYTES = 4096
SAMPLES = 64  # spread evenly, first and last bytes among them
BLOCK_VALUES = 1 << 20


def same_bytes(left: TensorReader, a: TensorInfo, right: TensorReader, b: TensorInfo, *, sampled: bool = False) -> bool:
    """True when two tensors have one dtype, one shape and the same bytes.

    A few small blocks are compared first: tensors that were trained apart differ almost everywhere. With `sampled`
    only those are, so a True says that nothing was found; a tensor that they cover is compared whole.
    """
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    one, other = bytearray(BLOCK_BYTES), bytearray(BLOCK_BYTES)
    for offset, n in _ranges(a.n_bytes, sampled=sampled):
        left.read_into(a, offset, memoryview(one)[:n])
        right.read_into(b, offset, memoryview(other)[:n])
        if one[:n] != other[:n]:
            return False
    return True


def _ranges(n_bytes: int, *, sampled: bool) -> list[tuple[int, int]]:
    """What to compare, in order: offset and length."""
    blocks = [(offset, min(BLOCK_BYTES, n_bytes - offset)) for offset in range(0, n_bytes, BLOCK_BYTES)]
    if n_bytes <= SAMPLES * SAMPLE_BYTES:
        return blocks
    last = n_bytes - SAMPLE_BYTES
    samples = [(last * i // (SAMPLES - 1), SAMPLE_BYTES) for i in range(SAMPLES)]
    return samples if sampled else [*samples, *blocks]


def count_not_finite(reader: TensorReader, tensor: TensorInfo) -> tuple[int, int]:
    """Values of a tensor that are NaN, and that are infinite. Raises FormatError for types that are not computed."""
    n_nan = n_infinite = 0
    for _, nan, infinite in finite_blocks(reader, tensor):
        n_nan, n_infinite = n_nan + nan, n_infinite + infinite
    return n_nan, n_infinite


def finite_blocks(reader: TensorReader, tensor: TensorInfo) -> Iterator[tuple[npt.NDArray[Any], int, int]]:
    """A tensor's finite values, flat, block by block; with each, how many others are NaN, and how many infinite.

    Raises:
        FormatError: values of its dtype cannot be computed with.
    """
    for start in range(0, tensor.n_values, BLOCK_VALUES):
        x = reader.rows(tensor, 1, start, min(start + BLOCK_VALUES, tensor.n_values))[:, 0]
        finite = np.isfinite(x)
        n_others = x.size - int(np.count_nonzero(finite))
        n_nan = int(np.isnan(x).sum()) if n_others else 0
        yield (x[finite] if n_others else x), n_nan, n_others - n_nan
