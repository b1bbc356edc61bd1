"""Whether two stored tensors are equal, byte for byte, and which values are no numbers: read in blocks."""

from __future__ import annotations

import numpy as np

from suture.formats.reading import TensorReader
from suture.values import TensorInfo

BLOCK_BYTES = 1 << 20
SAMPLE_BYTES = 4096
BLOCK_VALUES = 1 << 20


def same_bytes(left: TensorReader, a: TensorInfo, right: TensorReader, b: TensorInfo) -> bool:
    """True when two tensors have one dtype, one shape and the same bytes.

    A few small blocks are compared first: tensors that were trained apart differ almost everywhere.
    """
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    last = max(0, a.n_bytes - SAMPLE_BYTES)
    samples = [(offset, min(SAMPLE_BYTES, a.n_bytes - offset)) for offset in sorted({0, last // 2, last})]
    blocks = [(offset, min(BLOCK_BYTES, a.n_bytes - offset)) for offset in range(0, a.n_bytes, BLOCK_BYTES)]
    one, other = bytearray(BLOCK_BYTES), bytearray(BLOCK_BYTES)
    for offset, n in (*samples, *blocks):
        left.read_into(a, offset, memoryview(one)[:n])
        right.read_into(b, offset, memoryview(other)[:n])
        if one[:n] != other[:n]:
            return False
    return True


def count_not_finite(reader: TensorReader, tensor: TensorInfo) -> tuple[int, int]:
    """Values of a tensor that are NaN, and that are infinite. Raises FormatError for types that are not computed."""
    n_nan = n_infinite = 0
    for start in range(0, tensor.n_values, BLOCK_VALUES):
        x = reader.rows(tensor, 1, start, min(start + BLOCK_VALUES, tensor.n_values))
        finite = int(np.isfinite(x).sum())
        if finite < x.size:
            nan = int(np.isnan(x).sum())
            n_nan, n_infinite = n_nan + nan, n_infinite + x.size - finite - nan
    return n_nan, n_infinite
