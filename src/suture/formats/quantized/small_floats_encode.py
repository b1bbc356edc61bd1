"""Values → 8- and 4-bit floats: the nearest one, the even one of two, the largest where that is passed.

A float32 is cut to the fraction's bits after half of what is cut off was added; below the smallest normal number the
codes count equal steps. Infinity becomes the largest number; NaN stays NaN where the type has one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from suture.formats.dtypes import Array
from suture.formats.quantized.small_floats import values_of


class _Kind(NamedTuple):
    fraction: int  # bits
    bias: int
    largest: int  # code
    sign: int  # its place
    nan: int | None = None


KINDS = {
    "F8_E4M3": _Kind(3, 7, 0x7E, 7, 0x7F),
    "F8_E5M2": _Kind(2, 15, 0x7B, 7, 0x7E),
    "E2M1": _Kind(1, 1, 7, 3),
}


def largest(dtype: str) -> float:
    """The largest number of a type."""
    return float(values_of(dtype)[KINDS[dtype].largest])


def nearest(x: Array, dtype: str) -> Array:
    """The code of the nearest value for each float32: uint8."""
    kind = KINDS[dtype]
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    drop = 23 - kind.fraction
    rounded = size + ((size >> np.uint32(drop)) & np.uint32(1)) + np.uint32((1 << (drop - 1)) - 1)
    codes = (rounded >> np.uint32(drop)).astype(np.int32) - ((127 - kind.bias) << kind.fraction)
    a = size.view(np.float32)
    small = a < 2.0 ** (1 - kind.bias)
    codes[small] = np.rint(a[small] * np.float32(2.0 ** (kind.bias - 1 + kind.fraction))).astype(np.int32)
    np.minimum(codes, kind.largest, out=codes)
    if kind.nan is not None:
        codes[size > 0x7F800000] = kind.nan
    codes |= (bits >> np.uint32(31) << np.uint32(kind.sign)).astype(np.int32)
    return codes.astype(np.uint8)


def pairs(codes: Array) -> Array:
    """Two codes of 4 bits of the last axis in a byte, the first one in the lower half."""
    packed: Array = codes[..., 0::2] | codes[..., 1::2] << 4
    return packed


def exponents(sizes: Array) -> Array:
    """floor(log2) of positive float32, exactly; a very small number for 0."""
    return np.where(sizes > 0, np.frexp(sizes)[1] - 1, -1000)
