"""Rows of a weight that compressed-tensors has packed: see `compressed_tensors`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from suture.formats.dtypes import Array, from_float, to_float
from suture.formats.quantized.base import Read, Rows, malformed, some_rows, whole
from suture.formats.quantized.piecewise import as_stored, in_pieces, integers, multiply, subtract
from suture.formats.quantized.small_floats import look_up, nibbles, values_of
from suture.values import Packed, TensorInfo

# E2M3: a sign, two bits of exponent of bias 1, three of fraction; all are numbers.
_SIZES_E2M3 = np.array([n / 8 for n in range(8)] + [(1 + n / 8) * 2**e for e in range(3) for n in range(8)], np.float32)
_E2M3 = np.concatenate([_SIZES_E2M3, -_SIZES_E2M3])
# E8M0 as the library computes it, in BF16: 255 is infinite there.
_E8M0 = np.where(np.arange(256) == 255, np.float32(np.inf), values_of("F8_E8M0"))


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense weight: of each part, those that are asked for are read."""
    codes, settings = packed.parts["codes"], packed.settings
    if not settings:
        return as_stored(info, codes, read)
    cols, width = info.shape[1], settings["width"]
    decode = _decoder(settings["codes"], settings["bits"])
    order = _order(packed.parts["order"], cols // width, width, read) if "order" in packed.parts else None
    step = width if order is None else 1

    def of_columns(values: Array) -> Array:
        return values if order is None or values.shape[1] == 1 else values[:, order]

    def rows(start: int, stop: int) -> Array:
        stored = some_rows(codes, start, stop, read).view(np.uint8)
        scales, zeros = _scales(packed, start, stop, read), _zeros(packed, start, stop, read)

        def fill(a: int, b: int, x: Array) -> None:
            decode(stored[a:b], x)
            if zeros is not None:
                subtract(x, of_columns(zeros[a:b]), step)
            multiply(x, of_columns(scales[a:b]), step)

        return in_pieces(stop - start, cols, info.dtype, fill)

    return rows


def _decoder(codes: str, bits: int) -> Callable[[Array, Array], None]:
    """Puts the values of stored rows, as bytes, into float32."""

    def signed(stored: Array, x: Array) -> None:
        np.copyto(x, stored.view(np.int8))

    def packed(stored: Array, x: Array) -> None:
        np.copyto(x, integers(stored, bits, x.shape[1]))

    def float8(stored: Array, x: Array) -> None:
        np.take(values_of("F8_E4M3"), stored, out=x, mode="clip")

    def float6(stored: Array, x: Array) -> None:
        np.take(_E2M3, integers(stored, 6, x.shape[1]), out=x, mode="clip")

    def float4(stored: Array, x: Array) -> None:
        np.copyto(x, look_up(nibbles(), stored, np.float32))

    return {"I8": signed, "I32": packed, "F8_E4M3": float8, "F6_E2M3": float6, "F4": float4}[codes]


def _scales(packed: Packed, start: int, stop: int, read: Read) -> Array:
    """The scales of some rows: (rows, groups) float32."""
    scales = _grid(packed.parts["scales"], packed, start, stop, read)
    if "global" in packed.parts:
        of_all = packed.parts["global"]
        with np.errstate(all="ignore"):
            scales = values_of("F8_E4M3")[scales] / whole(of_all, read).reshape(-1)
        # A scale of no axis does not raise the dtype of the quotient.
        return scales if of_all.shape else to_float(from_float(scales, "BF16"), "BF16")
    return _E8M0[scales] if packed.parts["scales"].dtype == "U8" else to_float(scales, packed.parts["scales"].dtype)


def _zeros(packed: Packed, start: int, stop: int, read: Read) -> Array | None:
    """What is subtracted from the codes of some rows: (rows, groups) float32."""
    n_rows, bits = stop - start, packed.settings["bits"]
    offset = np.float32(1 << bits - 1)  # of packed integers
    zeros = packed.parts.get("zeros")
    if zeros is None:
        return np.full((n_rows, 1), offset) if packed.settings["codes"] == "I32" else None
    if zeros.dtype == "I8":
        values = _grid(zeros, packed, start, stop, read).astype(np.float32)
        return values + offset if packed.settings["codes"] == "I32" else values
    # Packed along the rows: a code begins in the word bit // 32, and may end in the next one.
    bit = np.arange(start, stop) * bits
    first, last = start * bits // 32, -(-stop * bits // 32)
    words = np.zeros((last - first + 1, zeros.shape[1]), np.uint64)
    words[:-1] = some_rows(zeros, first, last, read).view(np.uint32)
    i = bit // 32 - first
    both = words[i] | words[i + 1] << np.uint64(32)
    codes: Array = both >> (bit % 32).astype(np.uint64)[:, None] & np.uint64((1 << bits) - 1)
    return codes.astype(np.float32)


def _grid(info: TensorInfo, packed: Packed, start: int, stop: int, read: Read) -> Array:
    """Of a grid of blocks, the values of some rows: (rows, groups), as they are stored."""
    height = packed.settings["height"]
    if height == 1:
        return some_rows(info, start, stop, read)
    if not height:
        return np.broadcast_to(whole(info, read).reshape(1, 1), (stop - start, 1))
    first = start // height
    values = some_rows(info, first, -(-stop // height), read)
    of_rows: Array = values[np.arange(start, stop) // height - first]
    return of_rows


def _order(info: TensorInfo, n_groups: int, width: int, read: Read) -> Array | None:
    """The group of each column. None where they lie in order, which -1 stands for."""
    order: Array = whole(info, read).reshape(-1)
    if (order == -1).any():
        return None
    if order.min() < 0 or order.max() >= n_groups or (np.bincount(order, minlength=n_groups) != width).any():
        malformed(info, "groups of different sizes", f"{n_groups} groups of {width} columns")
    return order
