"""What GPTQ, AWQ and HQQ have in common: small codes, and a scale and a zero for every group of a row's values.

numpy rounds to float16 slowly: where a group has many values, its few possible ones are computed, and looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from suture.errors import FormatError
from suture.formats.dtypes import DTYPES, Array, from_float
from suture.formats.quantized.base import Read, Rows, malformed, some_rows
from suture.values import Json, TensorInfo

BLOCK = 1 << 17  # values that are decoded at a time: they stay in a core's cache
_PANEL = 8  # rows that are transposed at a time: half a line of the cache
# (codes, zeros, scales, dtype) → stored values; all but the last float32, shapes that broadcast
Formula: TypeAlias = Callable[[Array, Array, Array, str], Array]


@dataclass(frozen=True, slots=True)
class Grid:
    """What the codes of a weight's rows mean.

    Attributes:
        n_codes: how many there are.
        scales, zeros: (rows, groups), float32.
        formula: what is computed from them.
        group: of each column, its group; None where the groups are equally long and in order.
    """

    n_codes: int
    scales: Array
    zeros: Array
    formula: Formula
    group: Array | None = None


def difference(q: Array, z: Array, s: Array, dtype: str) -> Array:
    """(q − z) · s, of whole numbers q and z: the difference is exact, the product is rounded once."""
    x = q - z
    x *= s
    return from_float(x, dtype)


def decoded(info: TensorInfo, grid: Grid, codes: Callable[[int, int], Array]) -> Rows:
    """Rows of the dense weight, from `codes`: (start, stop) → the codes of these rows, uint8, contiguous."""
    cols, step = info.shape[1], max(BLOCK // info.shape[1] // 8 * 8, 8)

    def rows(start: int, stop: int) -> Array:
        out = np.empty((stop - start, cols), DTYPES[info.dtype].storage)
        for first, last in blocks(start, stop, step):
            fill(out[first - start : last - start], codes(first, last), grid, first, info.dtype)
        return out

    return rows


def fill(out: Array, codes: Array, grid: Grid, start: int, dtype: str) -> None:
    """The values of codes (rows, cols) that begin at the grid's row `start`."""
    (n_rows, n_cols), n = codes.shape, grid.n_codes
    here = slice(start, start + n_rows)
    z, s = grid.zeros[here, :, None], grid.scales[here, :, None]
    with np.errstate(over="ignore", invalid="ignore"):  # scales can be anything
        if dtype != "F16" or 2 * n > n_cols // grid.zeros.shape[1]:
            if grid.group is not None:
                z, s = z[:, grid.group], s[:, grid.group]
            x = codes.reshape(*z.shape[:2], -1).astype(np.float32)
            out[...] = grid.formula(x, z, s, dtype).reshape(out.shape)
        else:
            table = grid.formula(np.arange(n, dtype=np.float32), z, s, dtype)
            base = np.arange(0, table.size, n, dtype=np.int32).reshape(z.shape)
            if grid.group is not None:
                base = base[:, grid.group]
            index = codes.reshape(*base.shape[:2], -1).astype(np.int32)
            index += base
            np.take(table.reshape(-1), index.reshape(out.shape), out=out, mode="clip")


def blocks(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """The range, cut at multiples of `step`."""
    while start < stop:
        end = min((start // step + 1) * step, stop)
        yield start, end
        start = end


def spread(words: Array, bits: int) -> Array:
    """The codes in rows of 32-bit words, lowest bits first, as uint8; a code can begin in one word and end in the next.

    Eight codes are `bits` bytes. In three steps the upper half of them, of each half, of each quarter moves to where
    it would be if each code had a byte.
    """
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return octets
    if bits == 3:
        three = octets.reshape(len(octets), -1, 3)
        x = three[..., 0] | three[..., 1].astype(np.uint64) << 8 | three[..., 2].astype(np.uint64) << 16
    else:
        x = octets.view(f"<u{bits}").astype(np.uint64)
    for n in (4, 2, 1):
        x |= x << np.uint64(n * (8 - bits))
        x &= np.uint64(sum(((1 << n * bits) - 1) << 8 * n * k for k in range(8 // n)))
    return x.view(np.uint8)


def transposed(info: TensorInfo, read: Read) -> Array:
    """A stored matrix of I32, its columns as rows, uint32. Beside it, only a few of its rows are in memory."""
    n_rows, n_cols = info.shape
    words = np.empty((n_cols, n_rows), np.uint32)
    for start in range(0, n_rows, _PANEL):
        stop = min(start + _PANEL, n_rows)
        words[:, start:stop] = some_rows(info, start, stop, read).view(np.uint32).T
    return words


def require(info: TensorInfo, dtypes: Sequence[str], shape: tuple[int, ...] | None = None) -> None:
    """A FormatError, unless the tensor has one of these dtypes and this shape; without one, it is any matrix."""
    expected = f"{' or '.join(dtypes)} {list(shape)}" if shape else f"a matrix of {' or '.join(dtypes)}"
    if info.dtype not in dtypes or (info.shape != shape if shape else len(info.shape) != 2 or not info.n_values):
        malformed(info, f"{info.dtype} {list(info.shape)}", expected)


def choice(settings: Json, keys: Sequence[str], known: Sequence[object], default: object) -> object:
    """The first of these settings that is there, in lower case.

    Raises:
        FormatError: it is not one that is known.
    """
    for key in keys:
        value = settings.get(key)
        if value is not None:
            value = value.lower() if isinstance(value, str) else value
            if value not in known:
                where, expected = "config.json: quantization_config", ", ".join(map(str, known))
                raise FormatError(f"{key} is {value!r}", where=where, expected=expected)
            return value
    return default
