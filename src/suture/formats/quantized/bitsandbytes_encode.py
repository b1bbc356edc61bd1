"""Weights quantised anew by bitsandbytes itself, in the form in which they are stored.

The maps of 4 bits stay, and with them the offset of nested scales, which stands in the middle of the state's JSON:
scales are quantised as their distances from the old mean.

    absmax[j]   = max |W| over block j                      code[i] = the value of the map next to W[i] / absmax[j]
    stored[j]   = the value of the nested map next to (absmax[j] - offset) / nested_absmax          where nested
    SCB[i]      = max |W[i]| over a row, in float16         code[i, j] = round(W[i, j] · 127 / SCB[i])     of 8 bits

A difference from the library when it loads a plain model: its offset is the mean of the new scales.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np

from suture.errors import MissingExtra
from suture.formats.dtypes import Array
from suture.formats.quantized.base import Encode, Parts, Quantizer, Read, malformed, whole
from suture.values import Packed, TensorInfo

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # of blocks, that the library knows


def _granule(info: TensorInfo, packed: Packed) -> int:
    """Rows of whole blocks, and of whole blocks of scales."""
    values = packed.settings["blocksize"] * packed.settings.get("nested_blocksize", 1)
    return int(values // math.gcd(values, info.shape[-1]))


def _four_bits(info: TensorInfo, packed: Packed, read: Read) -> Encode:
    functional, cols, size = _library(), info.shape[-1], packed.settings["blocksize"]
    if size not in SIZES:
        malformed(packed.parts["codes"], f"blocks of {size}", f"of {SIZES}, which can be quantised again")
    kind, nested = packed.settings["type"], packed.settings.get("nested_blocksize")
    if not np.array_equal(whole(packed.parts["map"], read), functional.get_4bit_type(kind, device="cpu").numpy()):
        malformed(packed.parts["map"], "another map than the library's", f"the values of {kind}, to quantise again")
    nested_map = whole(packed.parts["nested_map"], read) if nested else None

    def encode(start: int, rows: Array) -> Parts:
        codes, state = functional.quantize_4bit(_tensor(rows), blocksize=size, quant_type=kind)
        first, scales = start * cols // size, state.absmax
        found = {"codes": (start * cols // 2, codes.numpy()), "absmax": (first, scales.numpy())}
        if nested_map is not None:
            offset = np.float32(packed.settings["offset"])
            shifted, code = _tensor(scales.numpy() - offset), _tensor(nested_map)
            stored, outer = functional.quantize_blockwise(shifted, code=code, blocksize=nested)
            found |= {"absmax": (first, stored.numpy()), "nested_absmax": (first // nested, outer.absmax.numpy())}
        return found

    return encode


def _eight_bits(info: TensorInfo, _packed: Packed, _read: Read) -> Encode:
    functional, cols = _library(), info.shape[-1]

    def encode(start: int, rows: Array) -> Parts:
        codes, scales, _ = functional.int8_vectorwise_quant(_tensor(rows).half())
        return {"codes": (start * cols, codes.numpy()), "scales": (start, scales.numpy())}

    return encode


def _tensor(values: Array) -> Any:
    import torch

    return torch.from_numpy(values)


def _library() -> Any:
    return library("which quantises the merged weights", "merge with --output dense")


def library(why: str, instead: str) -> Any:
    """bitsandbytes.functional.

    Raises:
        MissingExtra: it is not installed.
    """
    # At its import bitsandbytes tells how its CPU code for 4 bits could be faster; nothing here uses that.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional
    except ImportError as error:
        found = f"the package bitsandbytes is not installed, {why}"
        raise MissingExtra(found, do=f"pip install 'suture[train]', or {instead}.") from error
    return bitsandbytes.functional


FOUR_BITS = Quantizer(("codes", "absmax", "nested_absmax"), _granule, _four_bits, "bitsandbytes")
EIGHT_BITS = Quantizer(("codes", "scales"), lambda _info, _packed: 1, _eight_bits, "bitsandbytes")
