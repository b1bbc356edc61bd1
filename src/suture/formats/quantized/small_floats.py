"""Values of 8- and 4-bit floats, and tables that decode two of them at a time.

    E4M3  (-1)^s · 2^(e - 7)  · (1 + m / 8)      s eeee mmm; only s 1111 111 is not a number, nothing is infinite
    E5M2  (-1)^s · 2^(e - 15) · (1 + m / 4)      s eeeee mm; the upper half of a float16
    E8M0  2^(e - 127)                            eeeeeeee; 255 is not a number
    E2M1  (-1)^s · 2^(e - 1)  · (1 + m / 2)      s ee m; all are numbers

Where e is 0 the 1 before the fraction is 0, and the exponent that of e = 1; E8M0 has no fraction. https://arxiv.org/abs/2209.05433
(E4M3, E5M2); https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf (E8M0, E2M1).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from suture.formats.dtypes import Array, from_float, to_float
from suture.formats.quantized.base import Read, malformed, whole
from suture.values import TensorInfo

FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")  # what `scales_of` reads; U8 is E8M0 by another name


@lru_cache
def values_of(dtype: str) -> Array:
    """float32 of every code: 256 of F8_E4M3, F8_E5M2 and F8_E8M0, the 16 of E2M1."""
    codes = np.arange(16 if dtype == "E2M1" else 256, dtype=np.uint16)
    if dtype == "F8_E5M2":
        values = (codes << 8).view(np.float16).astype(np.float32)
    elif dtype == "F8_E8M0":
        values = np.ldexp(np.float32(1), np.minimum(codes, 254).astype(np.int32) - 127)
        values[255] = np.nan
    elif dtype == "F8_E4M3":
        values = _values(codes, 4, 3)
        values[codes & 0x7F == 0x7F] = np.nan
    else:
        values = _values(codes, 2, 1)
    values.flags.writeable = False
    return values


def _values(codes: Array, exponent_bits: int, fraction_bits: int) -> Array:
    """Sign, exponent and fraction put together; nothing is special but e = 0."""
    fraction = codes & ((1 << fraction_bits) - 1)
    exponent = codes >> fraction_bits & ((1 << exponent_bits) - 1)
    one = (exponent > 0).astype(np.uint16) << fraction_bits
    bias = (1 << exponent_bits - 1) - 1 + fraction_bits
    sign = np.where(codes >> exponent_bits + fraction_bits, -1, 1)
    size = np.ldexp((one + fraction).astype(np.float32), np.maximum(exponent, 1).astype(np.int32) - bias)
    values: Array = (size * sign).astype(np.float32)
    return values


def scales_of(info: TensorInfo, read: Read) -> Array:
    """A tensor of scales as float32, exactly."""
    stored = whole(info, read)
    if info.dtype not in ("F8_E8M0", "U8"):
        return to_float(stored, info.dtype)
    powers: Array = np.take(values_of("F8_E8M0"), stored)
    return powers


def require_scales(info: TensorInfo, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
    """Raise FormatError unless the scales are of one of these dtypes and shapes."""
    if info.dtype not in dtypes or info.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
        malformed(info, f"{info.dtype} {list(info.shape)}", f"{expected} of {' or '.join(dtypes)}")


@lru_cache
def two_bytes(dtype: str) -> Array:
    """Of two codes of 8 bits, read as a little-endian number: both values, as one item. 65,536 × (2 × float32)."""
    values = values_of(dtype)
    return _as_items(np.stack([np.tile(values, 256), np.repeat(values, 256)], axis=1))


@lru_cache
def nibbles() -> Array:
    """Of a byte, the values of its lower and of its upper four bits, as one item. 256 × (2 × float32)."""
    return _as_items(_nibbles(values_of("E2M1")))


def scaled_nibbles(values: Array, scales: Array, dtype: str) -> Array:
    """Of 256 · scale code + byte, both values times the scale, as one item. 65,536 × (2 × stored dtype).

    Args:
        values: float32 of each of the 16 codes.
        scales: float32 of each of the 256 scale codes.
        dtype: that the products, computed in float32, are rounded to.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        products = _nibbles(values)[None] * scales[:, None, None]
    return _as_items(from_float(products.reshape(-1, 2), dtype))


def _nibbles(values: Array) -> Array:
    codes = np.arange(256)
    return np.stack([values[codes & 15], values[codes >> 4]], axis=1)


def _as_items(pairs: Array) -> Array:
    """(n, 2) values → n items of twice their size: one look-up moves two values."""
    items = pairs.reshape(-1).view(np.dtype((np.void, 2 * pairs.itemsize)))
    items.flags.writeable = False
    return items


def look_up(items: Array, index: Array, storage: type | np.dtype[np.generic]) -> Array:
    """The pairs at each index, side by side along the last axis."""
    # Without "clip", every index is checked first; all of them are in the table.
    return np.take(items, index, mode="clip").view(storage)


def fill_rows(out: Array, first: int, codes: Array, scales: Array, table: Array) -> None:
    """Rows of a matrix whose codes are packed along its rows: two in a byte, the first one in the lower half.

    Args:
        out: (rows, cols) of the table's dtype, filled.
        first: number of the first row to fill.
        codes: (all rows / 2, cols) bytes.
        scales: (all rows / group, cols), each 256 · its code, uint16.
        table: of `scaled_nibbles`.
    """
    bytes_of_group = len(codes) // len(scales)
    begin, end = first // 2, -(-(first + len(out)) // 2)
    index = scales[np.arange(begin, end) // bytes_of_group]
    index |= codes[begin:end]
    pairs = look_up(table, index, out.dtype).reshape(*index.shape, 2)
    for j in (0, 1):
        skip, half = divmod(first + j, 2)
        rows = out[j::2]
        rows[...] = pairs[skip - begin :, :, half][: len(rows)]
