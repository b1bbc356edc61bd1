"""Rows decoded some at a time, so that what is computed stays in a core's cache, with scales for groups of columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from suture.formats.dtypes import DTYPES, Array, from_float, to_float
from suture.formats.quantized.base import Read, Rows, flat
from suture.values import TensorInfo

Fill: TypeAlias = Callable[[int, int, Array], None]  # puts rows a:b into an array of float32

_VALUES = 1 << 16  # of a piece: 256 KiB of float32


def in_pieces(n_rows: int, cols: int, dtype: str, fill: Fill) -> Array:
    """A matrix in the storage type of `dtype`: `fill` computes some rows, which are rounded once.

    Args:
        fill: (a, b, x) puts rows a:b of the matrix into x, which is (b - a, cols) of float32.
    """
    out = np.empty((n_rows, cols), DTYPES[dtype].storage)
    step = max(1, min(_VALUES // max(cols, 1), n_rows))
    x, scratch = np.empty((step, cols), np.float32), np.empty((step, cols), np.uint32)
    with np.errstate(all="ignore"):  # scales that are not finite give values that are not
        for a in range(0, n_rows, step):
            b = min(a + step, n_rows)
            fill(a, b, x[: b - a])
            from_float(x[: b - a], dtype, out=out[a:b], scratch=scratch[: b - a])
    return out


def as_stored(info: TensorInfo, stored: TensorInfo, read: Read) -> Rows:
    """Rows of a tensor that is stored as it is."""
    cols = info.shape[-1] if info.shape else 1

    def rows(start: int, stop: int) -> Array:
        return flat(stored, start * cols, stop * cols, read).reshape(stop - start, cols)

    return rows


def multiply(x: Array, scales: Array, width: int) -> None:
    """x (rows, cols) times scales (rows, groups): each group has `width` columns, the last one what is left."""
    _each(np.multiply, x, scales, width)


def subtract(x: Array, zeros: Array, width: int) -> None:
    """x (rows, cols) less zeros (rows, groups): see `multiply`."""
    _each(np.subtract, x, zeros, width)


def add(x: Array, shifts: Array, width: int, dtype: str) -> None:
    """x (rows, cols) and shifts (rows, groups): see `multiply`. The sum is yet to be rounded to `dtype`.

    Where it is not exact in float32, it becomes the neighbour whose last bit is 1: rounding that rounds the sum once.
    """
    terms = x.copy()
    _each(np.add, x, shifts, width)
    if dtype == "F32":
        return
    others = x - terms
    lost = terms - (x - others)  # Knuth's: what the sum lacks of one term, and of the other
    _each(np.subtract, others, shifts, width)
    lost -= others
    if lost.any():
        bits = x.view(np.uint32)
        even = (lost != 0) & np.isfinite(x) & (bits & 1 == 0)
        away = (lost < 0) == (x < 0)  # from zero
        bits[even & away] += 1
        bits[even & ~away] -= 1


def _each(apply: np.ufunc, x: Array, y: Array, width: int) -> None:
    if y.shape[1] == 1:
        apply(x, y, out=x)
        return
    n_whole = x.shape[1] // width
    whole = x[:, : n_whole * width].reshape(len(x), n_whole, width)
    apply(whole, y[:, :n_whole, None], out=whole)
    if n_whole < y.shape[1]:
        rest = x[:, n_whole * width :]
        apply(rest, y[:, n_whole : n_whole + 1], out=rest)


def round_to(x: Array, dtype: str) -> None:
    """Round values to those of a dtype, in place."""
    x[...] = to_float(from_float(x, dtype), dtype)


def integers(packed: Array, bits: int, count: int) -> Array:
    """Unsigned integers of 1 to 8 bits that follow each other without gaps, the first one in the lowest bits.

    Args:
        packed: (rows, n) uint8, contiguous, with at least count · bits bits in a row.

    Returns:
        (rows, count) uint8.
    """
    if bits == 8:
        return packed[:, :count]
    if bits == 4:
        pairs = packed.astype(np.uint16)  # 0000 0000 hhhh llll → 0000 hhhh 0000 llll: two bytes, the lower one first
        pairs |= pairs << 4
        pairs &= 0x0F0F
        return pairs.view(np.uint8)[:, :count]
    n_eights = -(-count // 8)  # eight integers are as many bytes as an integer has bits
    if packed.shape[1] < n_eights * bits:
        packed = np.pad(packed, ((0, 0), (0, n_eights * bits - packed.shape[1])))
    words = np.zeros((len(packed), n_eights), np.uint64)
    for i in range(bits):
        words |= packed[:, i : n_eights * bits : bits].astype(np.uint64) << np.uint64(8 * i)
    codes = np.empty((*words.shape, 8), np.uint8)
    for i in range(8):
        codes[:, :, i] = (words >> np.uint64(i * bits)) & np.uint64((1 << bits) - 1)
    return codes.reshape(len(packed), -1)[:, :count]
