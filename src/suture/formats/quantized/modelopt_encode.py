"""ModelOpt's weights, quantised anew: FP8 as any scaled blocks, NVFP4 under the scale of the weight that it has.

    weight_scale = the E4M3 next to max |W| over 16 values / (6 · weight_scale_2), at most 448
    code         = the E2M1 next to W / (weight_scale · weight_scale_2), at most 6

weight_scale_2 stays: a group whose values pass 6 · 448 · weight_scale_2 is cut there. Weights with a matrix for each
expert, packed along columns or not, are not quantised again. Formula: modelopt.torch.quantization.qtensor.nvfp4_tensor.
"""

from __future__ import annotations

import numpy as np

from suture.errors import UsageError
from suture.formats.dtypes import Array
from suture.formats.quantized import scaled_blocks_encode
from suture.formats.quantized.base import Encode, Parts, Quantizer, Read
from suture.formats.quantized.small_floats import scales_of, values_of
from suture.formats.quantized.small_floats_encode import largest, nearest, pairs
from suture.values import Packed, TensorInfo


def granule(info: TensorInfo, packed: Packed) -> int:
    """One row of NVFP4.

    Raises:
        UsageError: NVFP4 with a matrix for each expert.
    """
    if packed.parts["codes"].dtype != "U8":
        return scaled_blocks_encode.granule(info, packed)
    if len(info.shape) > 2:
        found = "experts in NVFP4 cannot be quantised again"
        raise UsageError(found, where=f"--output same: {info.name}", do="Merge with --output dense.")
    return 1


def open_encode(info: TensorInfo, packed: Packed, read: Read) -> Encode:
    """Quantises runs of rows: see `Quantizer`."""
    if packed.parts["codes"].dtype != "U8":
        return scaled_blocks_encode.open_encode(info, packed, read)
    cols, group = info.shape[-1], packed.settings["group"]
    second = scales_of(packed.parts["scales_2"], read).reshape(-1)[0]

    def encode(start: int, rows: Array) -> Parts:
        x = rows.reshape(len(rows), -1, group)
        sizes = np.abs(x).max(axis=-1)
        scales = nearest(sizes / np.float32(6) / second, "F8_E4M3")
        scales[sizes == 0] = _ONE
        products = values_of("F8_E4M3")[scales] * second
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.where(products[:, :, None] > 0, x / products[:, :, None], np.float32(0))
        codes = nearest(scaled, "E2M1").reshape(len(rows), cols)
        return {"codes": (start * cols // 2, pairs(codes)), "scales": (start * cols // group, scales)}

    return encode


_ONE = 0x38  # of E4M3; for a group of zeros, as the library has it
assert values_of("F8_E4M3")[_ONE] == 1
assert largest("E2M1") == 6
QUANTIZER = Quantizer(("codes", "scales"), granule, open_encode)
