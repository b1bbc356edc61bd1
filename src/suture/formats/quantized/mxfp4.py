"""MXFP4 as gpt-oss stores its experts: 4-bit floats (E2M1), and a power of two (E8M0) for each 32 of them.

    W[e, i, o] = code[e, o, i] · 2^(scale[e, o, i // 32] - 127)

`X_blocks` (experts, out, in / 32, 16) holds two codes a byte, the first one in the lower half; `X_scales` is (experts,
out, in / 32). The dense parameter X is the transposed one, (experts, in, out), as Transformers has it. Its values are
exact in bfloat16. A scale of 255 is not a number, as the format says; Transformers takes it for 2^128.
Layout: transformers.integrations.mxfp4; https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from suture.formats.dtypes import DTYPES, Array
from suture.formats.quantized import mxfp4_encode
from suture.formats.quantized.base import Dense, Given, Read, Rows, Scheme, dense, malformed, part, some_rows
from suture.formats.quantized.small_floats import fill_rows, require_scales, scaled_nibbles, values_of
from suture.values import Json, Packed, TensorInfo

BLOCKS, SCALES = "_blocks", "_scales"
_GROUP = 32
_VALUES = 1 << 18  # decoded at a time


def find(given: Given) -> Mapping[str, Dense]:
    """The parameters whose name, with `_blocks` behind it, holds bytes."""
    found = {}
    for name, blocks in sorted(given.tensors.items()):
        parameter = name.removesuffix(BLOCKS)
        if parameter != name and (blocks.dtype == "U8" or parameter + SCALES in given.tensors):
            scales = part(given.tensors, parameter + SCALES, blocks)
            if blocks.dtype != "U8" or len(blocks.shape) != 4 or blocks.shape[-1] != _GROUP // 2 or not blocks.n_values:
                malformed(blocks, f"{blocks.dtype} {list(blocks.shape)}", "U8 [experts, out, in / 32, 16]")
            require_scales(scales, ("U8", "F8_E8M0"), blocks.shape[:-1])
            experts, n_out, groups, _ = blocks.shape
            packed = Packed(SCHEME.name, {"codes": blocks, "scales": scales}, {})
            found[parameter] = dense(parameter, given.dtype, (experts, groups * _GROUP, n_out), packed, "codes")
    return found


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense parameter. An expert is read whole; transposed, still packed, it is kept for the next rows."""
    _, n_in, n_out = info.shape
    storage, step = DTYPES[info.dtype].storage, max(_VALUES // n_out, 2)
    table = scaled_nibbles(values_of("E2M1"), values_of("F8_E8M0"), info.dtype)

    @lru_cache(maxsize=1)
    def expert(e: int) -> tuple[Array, Array]:
        codes = some_rows(packed.parts["codes"], e, e + 1, read).reshape(n_out, n_in // 2)
        scales = some_rows(packed.parts["scales"], e, e + 1, read)[0]
        return _transposed(codes), scales.T.astype(np.uint16) << 8

    def rows(start: int, stop: int) -> Array:
        out = np.empty((stop - start, n_out), storage)
        begin = start
        while begin < stop:
            e, i = divmod(begin, n_in)
            end = min(stop, begin + step, (e + 1) * n_in)
            fill_rows(out[begin - start : end - start], i, *expert(e), table)
            begin = end
        return out

    return rows


def _transposed(matrix: Array) -> Array:
    """The transposed matrix. A strip at a time: columns that are a power of two apart share few places of a cache."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for i in range(0, len(matrix), 32):
        out[:, i : i + 32] = matrix[i : i + 32].T
    return out


def words(settings: Json) -> str:
    """MXFP4."""
    return "MXFP4"


SCHEME = Scheme("mxfp4", find, open_rows, words, mxfp4_encode.QUANTIZER)
