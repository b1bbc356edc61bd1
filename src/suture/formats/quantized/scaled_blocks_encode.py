"""8- or 4-bit floats with one scale for each block of a matrix, quantised anew.

    scale[i, j] = max |W| over the block / M              M: the largest number of the codes, 448 of E4M3
    code        = the float next to W · (M · (1 / max |W|))

as Transformers' quantiser for fine-grained FP8 computes it. A scale that is stored in fewer bits than float32 is
rounded first (to the next greater power of two where powers are stored), and W divided by what it has become.
Layout and formula: transformers.integrations.finegrained_fp8.Fp8Quantize; https://arxiv.org/abs/2412.19437.
"""

from __future__ import annotations

import math

import numpy as np

from suture.formats.dtypes import Array, from_float, to_float
from suture.formats.quantized.base import Encode, Parts, Quantizer, Read
from suture.formats.quantized.scaled_blocks import grid
from suture.formats.quantized.small_floats import values_of
from suture.formats.quantized.small_floats_encode import exponents, largest, nearest, pairs
from suture.values import Packed, TensorInfo


def granule(info: TensorInfo, packed: Packed) -> int:
    """Rows of a block; of experts, those of a matrix, or of all where they share a scale."""
    if packed.parts["scales"].n_values == 1:
        return math.prod(info.shape[:-1])
    return int(info.shape[-2] if len(info.shape) > 2 else min(packed.settings["block"][0], info.shape[-2]))


def open_encode(info: TensorInfo, packed: Packed, _read: Read) -> Encode:
    """Quantises runs of rows: see `Quantizer`."""
    codes, scales, cols = packed.parts["codes"], packed.parts["scales"], info.shape[-1]
    kind = "E2M1" if codes.dtype == "I8" else codes.dtype
    m, n = packed.settings["block"]
    shared, n_rows = scales.n_values == 1, info.shape[-2]
    down, across = grid(info.shape, (m, n))

    def encode(start: int, rows: Array) -> Parts:
        x = blocks(rows.reshape(-1, n_rows if len(info.shape) > 2 else len(rows), cols), m, n)
        sizes = np.abs(x).max(axis=(2, 4))
        stored, factors = _scaled(sizes.max(keepdims=True) if shared else sizes, largest(kind), scales.dtype)
        made: Array = nearest(x * factors[:, :, None, :, None], kind).reshape(len(x), -1, x.shape[3] * x.shape[4])
        made = made[:, : len(rows) // len(x), :cols].reshape(-1, cols)
        first = 0 if shared else (start // n_rows * down + start % n_rows // m) * across
        width = codes.shape[-1]
        storage = np.int8 if codes.dtype == "I8" else np.uint8
        items = (pairs(made) if kind == "E2M1" else made).view(storage)
        return {"codes": (start * width, items), "scales": (first, stored.reshape(-1))}

    return encode


def blocks(x: Array, m: int, n: int) -> Array:
    """(experts, rows, cols) → (experts, down, m, across, n), zeros behind the lower and right edges."""
    experts, rows, cols = x.shape
    down, across = -(-rows // m), -(-cols // n)
    if (rows, cols) != (down * m, across * n):
        x = np.pad(x, ((0, 0), (0, down * m - rows), (0, across * n - cols)))
    return x.reshape(experts, down, m, across, n)


def _scaled(sizes: Array, most: float, dtype: str) -> tuple[Array, Array]:
    """The scales as they are stored, and what values are multiplied with."""
    with np.errstate(all="ignore"):
        factors = np.where(sizes > 0, np.float32(most) * (np.float32(1) / sizes), np.float32(1))
        scales = np.float32(1) / factors
        if dtype == "F32":
            return scales, factors
        if dtype in ("F8_E8M0", "U8"):
            above = exponents(scales)
            above += np.ldexp(np.float32(1), above) < scales
            stored = np.clip(above + 127, 0, 254).astype(np.uint8)
            return stored, np.float32(1) / values_of("F8_E8M0")[stored]
        stored = from_float(scales, dtype)
        return stored, np.float32(1) / to_float(stored, dtype)


QUANTIZER = Quantizer(("codes", "scales"), granule, open_encode)
