"""bitsandbytes in 8 bits (LLM.int8): a signed byte a value, and one scale a row.

    W[i, j] = code[i, j] · SCB[i] · (1 / 127)

The products are in float32, in this order, and so are the dense weights. LLM.int8 also rounds what is multiplied with
them, which no dense model can do. Layout: bitsandbytes.nn.Linear8bitLt, `weight_format` 0 (rows);
https://arxiv.org/abs/2208.07339.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from suture.formats.dtypes import Array
from suture.formats.quantized.base import Dense, Given, Read, Rows, Scheme, dense, malformed, part, some_rows, whole
from suture.formats.quantized.bitsandbytes_encode import EIGHT_BITS
from suture.values import Json, Packed, TensorInfo

_SCALE = np.float32(7.874015718698502e-3)  # 1 / 127, as the library writes it


def find(given: Given) -> Mapping[str, Dense]:
    """The weights beside which an SCB stands."""
    found = {}
    for name, scales in sorted(given.tensors.items()):
        module, separator, kind = name.rpartition(".")
        if separator and kind == "SCB":
            weight = part(given.tensors, f"{module}.weight", scales)
            parts = {"codes": weight, "scales": scales}
            if weight.dtype != "I8" or len(weight.shape) != 2:
                malformed(weight, f"{weight.dtype} {list(weight.shape)}", "a matrix of I8, beside its SCB")
            if scales.dtype != "F32" or scales.n_values != weight.shape[0]:
                malformed(scales, f"{scales.n_values:,} values of {scales.dtype}", f"{weight.shape[0]:,} of F32")
            if (layout := given.tensors.get(f"{module}.weight_format")) is not None:
                parts["format"] = layout
                if whole(layout, given.read).any():
                    malformed(layout, "a layout that old GPU kernels used", "0, which stands for rows")
            packed = Packed(SCHEME.name, parts, {})
            found[weight.name] = dense(weight.name, "F32", weight.shape, packed, "codes")
    return found


def open_rows(_: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense weight."""
    codes, scales = packed.parts["codes"], whole(packed.parts["scales"], read).reshape(-1, 1)

    def rows(start: int, stop: int) -> Array:
        return values(some_rows(codes, start, stop, read), scales[start:stop])

    return rows


def values(codes: Array, scales: Array) -> Array:
    """What codes (rows, cols) and the scales of their rows mean, float32."""
    x = codes.astype(np.float32)
    x *= scales.reshape(-1, 1)
    x *= _SCALE
    return x


def words(settings: Json) -> str:
    """bitsandbytes int8."""
    return "bitsandbytes int8"


SCHEME = Scheme("bitsandbytes8", find, open_rows, words, EIGHT_BITS)
