"""MXFP4 experts, quantised anew as the format's paper says.

    scale = floor(log2(max |W| over 32 values)) - 2                  2 is the exponent of 6, the largest code
    code  = the E2M1 next to W / 2^scale, the even one of two, at most 6

https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf, section 6.3.
"""

from __future__ import annotations

import numpy as np

from suture.formats.dtypes import Array
from suture.formats.quantized.base import Encode, Parts, Quantizer, Read
from suture.formats.quantized.small_floats_encode import exponents, nearest, pairs
from suture.values import Packed, TensorInfo

_GROUP, _EXPONENT, _BIAS = 32, 2, 127


def granule(info: TensorInfo, _packed: Packed) -> int:
    """The rows of an expert."""
    return info.shape[-2]


def open_encode(info: TensorInfo, _packed: Packed, _read: Read) -> Encode:
    """Quantises whole experts: see `Quantizer`."""
    _, n_in, n_out = info.shape
    groups = n_in // _GROUP

    def encode(start: int, rows: Array) -> Parts:
        x = rows.reshape(-1, n_in, n_out).swapaxes(1, 2).reshape(-1, n_out, groups, _GROUP)
        scales = np.clip(exponents(np.abs(x).max(axis=-1)) - _EXPONENT + _BIAS, 0, 254)
        codes = pairs(nearest(np.ldexp(x, (_BIAS - scales)[..., None]), "E2M1"))
        first = start // n_in * n_out * groups
        return {"codes": (first * _GROUP // 2, codes), "scales": (first, scales.astype(np.uint8))}

    return encode


QUANTIZER = Quantizer(("codes", "scales"), granule, open_encode)
