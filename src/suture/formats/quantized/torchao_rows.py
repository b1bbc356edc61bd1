"""Rows of a tensor subclass of torchao: see `torchao`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from suture.formats.dtypes import Array, to_float
from suture.formats.quantized.base import Read, Rows, some_rows, whole
from suture.formats.quantized.piecewise import Fill, add, in_pieces, integers, multiply, round_to, subtract
from suture.formats.quantized.small_floats import look_up, nibbles, values_of
from suture.values import Packed, TensorInfo

TILE = 128  # columns of a matrix that lie together in an Int4TilePackedTo4dTensor
# Codes lie by row, lane of four, word, odd column or even, group of 8; a column is word, group, lane, odd or even.
_IN_A_TILE = np.arange(8 * TILE).reshape(8, 4, 4, 2, 4).transpose(0, 2, 4, 1, 3).reshape(-1)
_Opened = Callable[[int, int], Fill]  # (start, stop) → fills rows, counted from start


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense weight: the scales are read once, the codes as they are needed."""
    kind, cols = packed.settings["kind"], info.shape[-1]
    opened = {"Int4Tensor": _int4, "Int4TilePackedTo4dTensor": _tiles}.get(kind, _blocks)(info, packed, read)
    before = _floats(packed.parts["act_pre_scale"], read) if "act_pre_scale" in packed.parts else None

    def rows(start: int, stop: int) -> Array:
        fill = opened(start, stop)

        def fill_and_scale(a: int, b: int, x: Array) -> None:
            fill(a, b, x)
            if before is not None:
                round_to(x, packed.settings["rounded"])
                x *= before.reshape(-1)

        return in_pieces(stop - start, cols, info.dtype, fill_and_scale)

    return rows


def _floats(info: TensorInfo, read: Read) -> Array:
    stored = whole(info, read)
    return values_of(info.dtype)[stored] if info.dtype.startswith("F8") else to_float(stored, info.dtype)


def _blocks(info: TensorInfo, packed: Packed, read: Read) -> _Opened:
    """(code − zero) · scale."""
    codes, block = packed.parts["qdata"], packed.settings["block"]
    dtype = packed.settings.get("rounded", info.dtype)
    leading = info.shape[:-1]
    grid = tuple(n // m for n, m in zip(info.shape, block, strict=True))
    scales = _scales(packed, math.prod(leading), grid[-1], dtype, read).reshape(-1, grid[-1])
    zeros, exact = _zeros(packed, dtype, grid[-1], read)
    decode = _decoder(codes.dtype)
    n_bytes = codes.n_bytes // math.prod(leading)  # of a row

    def opened(start: int, stop: int) -> Fill:
        stored = np.empty((stop - start, n_bytes), np.uint8)
        read(codes, start * n_bytes, stored)
        places = np.unravel_index(np.arange(start, stop), leading)
        blocks = tuple(place // size for place, size in zip(places, block[:-1], strict=True))
        index = np.ravel_multi_index(blocks, grid[:-1])

        def fill(a: int, b: int, x: Array) -> None:
            decode(stored[a:b], x)
            if zeros is not None:
                subtract(x, zeros[index[a:b]], block[-1])
                if not exact:
                    round_to(x, dtype)
            multiply(x, scales[index[a:b]], block[-1])

        return fill

    return opened


def _decoder(dtype: str) -> Callable[[Array, Array], None]:
    """Puts the values of stored rows, as bytes, into float32."""

    def signed(stored: Array, x: Array) -> None:
        np.copyto(x, stored.view(np.int8))

    def float8(stored: Array, x: Array) -> None:
        np.take(values_of(dtype), stored, out=x, mode="clip")

    def float4(stored: Array, x: Array) -> None:
        np.copyto(x, look_up(nibbles(), stored, np.float32))

    return {"I8": signed, "U8": float4}.get(dtype, float8)


def _scales(packed: Packed, rows: int, groups: int, dtype: str, read: Read) -> Array:
    """The scales as float32, in order."""
    scales = _floats(packed.parts["scale"], read)
    if packed.settings.get("swizzled"):
        down, across = -(-rows // 128), -(-groups // 4)
        tiles = scales.reshape(down, across, 32, 4, 4)  # row r of a tile lies at [r % 32, r // 32]
        scales = tiles.transpose(0, 3, 2, 1, 4).reshape(down * 128, across * 4)[:rows, :groups]
    with np.errstate(all="ignore"):
        if "per_tensor_scale" in packed.parts:
            of_all = _floats(packed.parts["per_tensor_scale"], read).reshape(-1, 1)
            scales = (of_all * scales.reshape(len(of_all), -1)).reshape(-1)
        if packed.settings["kind"] == "MXTensor":
            scales = scales.copy()
            round_to(scales, dtype)  # a power of two that float16 does not have
    return scales


def _zeros(packed: Packed, dtype: str, groups: int, read: Read) -> tuple[Array | None, bool]:
    """Zeros as float32, and whether differences from codes have no need to be rounded."""
    info = packed.parts.get("zero_point")
    if info is None:
        return None, True
    if info.dtype == "I8":
        return whole(info, read).astype(np.float32).reshape(-1, groups), True
    zeros = _floats(info, read).reshape(-1, groups)
    round_to(zeros, dtype)
    return zeros, False


def _int4(info: TensorInfo, packed: Packed, read: Read) -> _Opened:
    """code · scale + zero; two codes in a byte, the first one in the lower half."""
    codes, width, dtype = packed.parts["qdata"], packed.settings["width"], packed.settings.get("rounded", info.dtype)
    scales, zeros = (
        np.swapaxes(_floats(packed.parts[part], read), -1, -2).reshape(-1, info.shape[-1] // width)
        for part in ("scale", "zero_point")
    )
    n_bytes = info.shape[-1] // 2

    def opened(start: int, stop: int) -> Fill:
        stored = np.empty((stop - start, n_bytes), np.uint8)
        read(codes, start * n_bytes, stored)

        def fill(a: int, b: int, x: Array) -> None:
            # −8 … −1 lie behind 0 … 7.
            np.copyto(x, (integers(stored[a:b], 4, 2 * n_bytes) ^ 8).view(np.int8) - np.int8(8))
            multiply(x, scales[start + a : start + b], width)
            add(x, zeros[start + a : start + b], width, dtype)

        return fill

    return opened


def _tiles(info: TensorInfo, packed: Packed, read: Read) -> _Opened:
    """code · scale + zero; in tiles of 8 rows and 128 columns, as the lanes of a tensor core hold them."""
    codes, width, cols = packed.parts["qdata"], packed.settings["width"], info.shape[1]
    both = _floats(packed.parts["scale_and_zero"], read)
    scales, zeros, dtype = both[:, :, 0].T, both[:, :, 1].T, packed.settings.get("rounded", info.dtype)
    across = codes.shape[1]

    def opened(start: int, stop: int) -> Fill:
        first = start // 8
        stored = some_rows(codes, first, -(-stop // 8), read).view(np.uint8)
        n_tiles = len(stored)
        tiles = np.take(integers(stored.reshape(n_tiles * across, 512), 4, 1024), _IN_A_TILE, axis=1)
        tiles = tiles.reshape(n_tiles, across, 8, TILE).swapaxes(1, 2)
        rows = tiles.reshape(n_tiles * 8, across * TILE)[start - first * 8 :, :cols]

        def fill(a: int, b: int, x: Array) -> None:
            np.subtract(rows[a:b], 8.0, out=x)
            multiply(x, scales[start + a : start + b], width)
            add(x, zeros[start + a : start + b], width, dtype)

        return fill

    return opened
