"""Weights of 8- or 4-bit floats with one scale for each block of a matrix: what several schemes store.

    W[e, i, j] = value(code[e, i, j]) · scale[e, i // m, j // n]

The product is in float32, rounded once to the dense dtype. A row, a column or a whole matrix is a block of that size.
The blocks at the lower and right edges are smaller where the sizes are no multiples.
"""

from __future__ import annotations

import math

import numpy as np

from suture.formats.dtypes import DTYPES, Array, from_float
from suture.formats.quantized.base import Read, Rows
from suture.formats.quantized.small_floats import look_up, nibbles, scales_of, two_bytes
from suture.values import Packed, TensorInfo

_VALUES = 1 << 18  # decoded at a time: what a core's own cache holds


def grid(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks lie in a matrix, along its rows and along its columns."""
    return -(-shape[-2] // block[0]), -(-shape[-1] // block[1])


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense weight. The scales are read once, the codes as they are needed.

    Parts: codes (…, in) F8_E4M3 or F8_E5M2, or (…, in / 2) I8 of E2M1, the first one in the lower half; scales (…,
    grid) or one for all. Setting: block, (m, n).
    """
    codes, (m, n) = packed.parts["codes"], packed.settings["block"]
    n_rows, cols = info.shape[-2:]
    down, across = grid(info.shape, (m, n))
    leading = math.prod(info.shape[:-2])
    stored = scales_of(packed.parts["scales"], read).reshape(-1, down, across)
    scales: Array = np.broadcast_to(stored, (leading, down, across)).reshape(-1, across)
    storage, step = DTYPES[info.dtype].storage, max(_VALUES // cols, 1)

    def rows(start: int, stop: int) -> Array:
        out = np.empty((stop - start, cols), storage)
        for begin in range(start, stop, step):
            end = min(begin + step, stop)
            x = _values(codes, begin, end, read).reshape(-1, cols)
            i = np.arange(begin, end)
            _multiply(x, scales[i // n_rows * down + i % n_rows // m], n)
            from_float(x, info.dtype, out=out[begin - start : end - start])
        return out

    return rows


def _values(codes: TensorInfo, begin: int, end: int, read: Read) -> Array:
    """float32 of the codes in some rows."""
    width = codes.shape[-1]
    n_bytes = (end - begin) * width
    stored = np.zeros(n_bytes + n_bytes % 2, np.uint8)
    read(codes, begin * width, stored[:n_bytes])
    if codes.dtype == "I8":
        return look_up(nibbles(), stored[:n_bytes], np.float32)
    return look_up(two_bytes(codes.dtype), stored.view("<u2"), np.float32)[:n_bytes]


def _multiply(x: Array, scales: Array, n: int) -> None:
    """Every n values of a row with the next one of its scales."""
    whole = x.shape[1] // n
    blocks = x[:, : whole * n].reshape(len(x), whole, n)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        blocks *= scales[:, :whole, None]
        x[:, whole * n :] *= scales[:, whole:]
