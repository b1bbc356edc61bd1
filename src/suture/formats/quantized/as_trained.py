"""Weights of 16 bits as a quantised model would hold them: quantised by bitsandbytes, and dequantised again.

What QLoRA trains on when it loads a plain model with `load_in_4bit` or `load_in_8bit`: no file ever holds these values.
Nested scales follow from the whole weight, as in the loader; all else from the rows that are asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from suture.formats.dtypes import Array, to_float
from suture.formats.quantized import bitsandbytes4, bitsandbytes8
from suture.formats.quantized.base import Dense, Given, Read, Rows, Scheme, dense, flat
from suture.formats.quantized.bitsandbytes_encode import library
from suture.values import Json, Packed, TensorInfo

FORMS = ("nf4", "nf4-nested", "fp4", "fp4-nested", "int8")
BLOCKSIZE, NESTED_BLOCKSIZE = 64, 256  # of Transformers' BitsAndBytesConfig
CHUNK_VALUES = 1 << 20  # read at a time to find the scales; a multiple of the block size


def as_dense(weight: TensorInfo, form: str) -> Dense:
    """The tensor that stands for a weight of 16 or 32 bits after it was quantised in this form."""
    packed = Packed(SCHEME.name, {"weight": weight}, {"form": form})
    return dense(weight.name, "F32" if form == "int8" else weight.dtype, weight.shape, packed, "weight")


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the weight, dequantised: those that are asked for are quantised, with the scales of the whole.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    weight, (kind, _, nested) = packed.parts["weight"], packed.settings["form"].partition("-")
    if kind == "int8":
        return _eight(weight, read)
    scales = _nested_scales(weight, read) if nested else None
    cols, decode = info.shape[-1], bitsandbytes4.decoder(info.dtype)

    def rows(start: int, stop: int) -> Array:
        first, last = start * cols, stop * cols
        low = first // BLOCKSIZE * BLOCKSIZE
        values = _tensor(flat(weight, low, _whole_blocks(last, weight), read), weight.dtype)
        codes, state = _library().quantize_4bit(values, blocksize=BLOCKSIZE, quant_type=kind)
        absmax = state.absmax.numpy() if scales is None else scales[low // BLOCKSIZE :]
        stored, first, last = codes.numpy().reshape(-1), first - low, last - low
        return decode(stored[first // 2 :], state.code.numpy(), absmax, first, last, BLOCKSIZE).reshape(-1, cols)

    return rows


def _eight(weight: TensorInfo, read: Read) -> Rows:
    """Rows in LLM.int8, each with its own scale."""
    cols = weight.shape[-1]

    def rows(start: int, stop: int) -> Array:
        values = _tensor(flat(weight, start * cols, stop * cols, read), weight.dtype).reshape(-1, cols)
        codes, scales, _ = _library().int8_vectorwise_quant(values.half())
        return bitsandbytes8.values(codes.numpy(), scales.numpy())

    return rows


def _nested_scales(weight: TensorInfo, read: Read) -> Array:
    """The scale of each block of the whole weight, after it was quantised itself; float32."""
    import torch

    steps = range(0, weight.n_values, CHUNK_VALUES)
    largest = [_largest(flat(weight, i, min(i + CHUNK_VALUES, weight.n_values), read), weight.dtype) for i in steps]
    absmax = torch.from_numpy(np.concatenate(largest))
    offset = absmax.mean()
    stored, outer = _library().quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCKSIZE)
    scales: Array = (
        outer.code.numpy()[stored.numpy()] * np.repeat(outer.absmax.numpy(), NESTED_BLOCKSIZE)[: len(stored)]
    )
    scales += offset.numpy()
    return scales


def _largest(values: Array, dtype: str) -> Array:
    """max |W| over each block."""
    sizes = np.abs(to_float(values, dtype))
    n_whole = len(sizes) // BLOCKSIZE * BLOCKSIZE
    found = sizes[:n_whole].reshape(-1, BLOCKSIZE).max(axis=1)
    return np.append(found, sizes[n_whole:].max()) if n_whole < len(sizes) else found


def _whole_blocks(n: int, weight: TensorInfo) -> int:
    """The end of the block that value n - 1 lies in."""
    return min(-(-n // BLOCKSIZE) * BLOCKSIZE, weight.n_values)


def _tensor(stored: Array, dtype: str) -> Any:
    """Stored values as a tensor of torch."""
    import torch

    return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16) if dtype == "BF16" else torch.from_numpy(stored)


def _library() -> Any:
    return library("which quantises as training did", "merge with --onto original")


def _find(_: Given) -> dict[str, Dense]:
    """No file shows such weights."""
    return {}


def words(settings: Json) -> str:
    """Such as "bitsandbytes NF4, nested scales, as in training"."""
    kind, _, nested = str(settings["form"]).partition("-")
    name = "int8" if kind == "int8" else kind.upper()
    return f"bitsandbytes {name}{', nested scales' if nested else ''}, as in training"


SCHEME = Scheme("as_trained", _find, open_rows, words)
