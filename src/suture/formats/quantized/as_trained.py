"""Weights of 16 bits as a quantised model would hold them: quantised by bitsandbytes, and dequantised again.

What QLoRA trains on when it loads a plain model with `load_in_4bit` or `load_in_8bit`: no file ever holds these values.
Each weight is quantised whole, as the loader does it; then rows are decoded as those of a stored one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from suture.formats.dtypes import DTYPES, Array
from suture.formats.files import Buffer, bytes_of
from suture.formats.quantized import bitsandbytes4, bitsandbytes8
from suture.formats.quantized.base import Dense, Given, Read, Rows, Scheme, dense, whole
from suture.formats.quantized.bitsandbytes_encode import library
from suture.values import Json, Packed, TensorInfo

FORMS = ("nf4", "nf4-nested", "fp4", "fp4-nested", "int8")
BLOCKSIZE, NESTED_BLOCKSIZE = 64, 256  # of Transformers' BitsAndBytesConfig


def as_dense(weight: TensorInfo, form: str) -> Dense:
    """The tensor that stands for a weight of 16 or 32 bits after it was quantised in this form."""
    packed = Packed(SCHEME.name, {"weight": weight}, {"form": form})
    return dense(weight.name, "F32" if form == "int8" else weight.dtype, weight.shape, packed, "weight")


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the weight, dequantised. The codes and scales of all of it are in memory.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    weight = _tensor(packed.parts["weight"], read)
    kind, _, nested = packed.settings["form"].partition("-")
    parts, settings = _eight(weight) if kind == "int8" else _four(weight, kind, nested=bool(nested))
    memory = {role: TensorInfo(role, *_kind(x), file="", begin=0, end=x.nbytes) for role, x in parts.items()}

    def stored(part: TensorInfo, offset: int, buffer: Buffer) -> None:
        view = bytes_of(buffer)
        view[:] = parts[part.name].reshape(-1).view(np.uint8)[offset : offset + len(view)].data

    scheme = bitsandbytes8.SCHEME if kind == "int8" else bitsandbytes4.SCHEME
    return scheme.open(info, Packed(scheme.name, memory, settings), stored)


def _tensor(info: TensorInfo, read: Read) -> Any:
    """A stored weight as a tensor of torch."""
    import torch

    stored = whole(info, read)
    bits = torch.from_numpy(stored.view(np.int16) if info.dtype == "BF16" else stored)
    return bits.view(torch.bfloat16) if info.dtype == "BF16" else bits


def _four(weight: Any, kind: str, *, nested: bool) -> tuple[dict[str, Array], Json]:
    functional = _library()
    codes, state = functional.quantize_4bit(weight, blocksize=BLOCKSIZE, compress_statistics=nested, quant_type=kind)
    parts = {"codes": codes, "absmax": state.absmax, "map": state.code}
    settings: dict[str, Any] = {"type": kind, "blocksize": BLOCKSIZE}
    if nested:
        parts |= {"nested_absmax": state.state2.absmax, "nested_map": state.state2.code}
        settings |= {"nested_blocksize": state.state2.blocksize, "offset": state.offset.item()}
    return {role: x.numpy() for role, x in parts.items()}, settings


def _eight(weight: Any) -> tuple[dict[str, Array], Json]:
    codes, scales, _ = _library().int8_vectorwise_quant(weight.half())
    return {"codes": codes.numpy(), "scales": scales.numpy()}, {}


def _library() -> Any:
    return library("which quantises as training did", "merge with --onto original")


def _kind(x: Array) -> tuple[str, tuple[int, ...]]:
    """dtype and shape, as a header would have them."""
    return next(name for name, dtype in DTYPES.items() if dtype.storage == x.dtype and name[0] in "UIF"), x.shape


def _find(_: Given) -> dict[str, Dense]:
    """No file shows such weights."""
    return {}


def words(settings: Json) -> str:
    """Such as "bitsandbytes NF4, nested scales, as in training"."""
    kind, _, nested = str(settings["form"]).partition("-")
    name = "int8" if kind == "int8" else kind.upper()
    return f"bitsandbytes {name}{', nested scales' if nested else ''}, as in training"


SCHEME = Scheme("as_trained", _find, open_rows, words)
