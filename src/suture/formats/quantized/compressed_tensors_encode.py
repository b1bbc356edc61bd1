"""Weights of compressed-tensors, quantised anew: int8, FP8 and NVFP4 with symmetric scales, as the library does it.

    scale = max |W| over the row, group, block or matrix / (the range of the codes / 2): 127.5 of int8, 448, 6 of E2M1
    code  = the integer or float next to W / scale, cut to the range

The scale is rounded to the dtype that it is stored in before W is divided by it. NVFP4 has E4M3 scales, of max |W| / 6
· weight_global_scale, which stays: a group whose values have outgrown it is cut. Packed integers were made by methods
that look at data, such as GPTQ; rounding them to nearest would throw that away, and they are not quantised again.
Formula: compressed_tensors.quantization.utils.helpers.calculate_qparams and …lifecycle.forward.quantize.
"""

from __future__ import annotations

import numpy as np

from suture.errors import UsageError
from suture.formats.dtypes import Array, from_float, to_float
from suture.formats.quantized.base import Encode, Parts, Quantizer, Read, whole
from suture.formats.quantized.scaled_blocks_encode import blocks
from suture.formats.quantized.small_floats import values_of
from suture.formats.quantized.small_floats_encode import nearest, pairs
from suture.values import Packed, TensorInfo

_HALF_RANGES = {"I8": 127.5, "F8_E4M3": 448.0, "F4": 6.0}  # by the codes
_EPS = np.float32(2**-23)  # the scale of zeros; of E4M3, 1/8
_EPS_E4M3 = 0x20


def granule(info: TensorInfo, packed: Packed) -> int:
    """Rows of a block, or of a matrix that has one scale.

    Raises:
        UsageError: weights in a form that is not quantised again.
    """
    codes, parts = packed.settings.get("codes"), packed.parts
    if codes not in _HALF_RANGES or "zeros" in parts or "order" in parts or parts["scales"].dtype == "U8":
        found = "only symmetric int8, FP8 and NVFP4 of compressed-tensors are quantised again"
        raise UsageError(found, where=f"--output same: {info.name}", do="Merge with --output dense.")
    return int(packed.settings["height"] or info.shape[0])


def open_encode(info: TensorInfo, packed: Packed, read: Read) -> Encode:
    """Quantises runs of rows: see `Quantizer`."""
    codes, height, width = (packed.settings[key] for key in ("codes", "height", "width"))
    dtype, cols = packed.parts["scales"].dtype, info.shape[1]
    of_all = whole(packed.parts["global"], read).reshape(-1)[0] if "global" in packed.parts else np.float32(1)

    def encode(start: int, rows: Array) -> Parts:
        x = blocks(rows[None], height or len(rows), width)[0]
        sizes = np.abs(x).max(axis=(1, 3))
        stored, scales = _scales(sizes / np.float32(_HALF_RANGES[codes]) * of_all, dtype)
        with np.errstate(all="ignore"):
            x = x / (scales / of_all)[:, None, :, None]
        made = _codes(x, codes).reshape(-1, x.shape[2] * x.shape[3])[: len(rows), :cols]
        made = pairs(made) if codes == "F4" else made
        first = start // height if height else 0
        return {"codes": (start * made.shape[1], made), "scales": (first * stored.shape[1], stored)}

    return encode


def _scales(sizes: Array, dtype: str) -> tuple[Array, Array]:
    """The scales as they are stored, and their values."""
    if dtype == "F8_E4M3":
        stored = nearest(sizes, dtype)
        stored[stored == 0] = _EPS_E4M3
        return stored, values_of(dtype)[stored]
    stored = from_float(np.where(sizes == 0, _EPS, sizes), dtype)
    return stored, to_float(stored, dtype)


def _codes(x: Array, codes: str) -> Array:
    if codes != "I8":
        return nearest(x, "E2M1" if codes == "F4" else codes)
    with np.errstate(invalid="ignore"):
        made: Array = np.rint(np.clip(x, -128, 127)).astype(np.int8)
    return made


QUANTIZER = Quantizer(("codes", "scales"), granule, open_encode)
