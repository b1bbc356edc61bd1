"""The types of GGUF files: Q4_0 to Q8_0, the K, IQ and TQ types, MXFP4, NVFP4, and F32, F16 and BF16 beside them.

A row is a whole number of blocks, each with its own scales; the package gguf says what they stand for, in float32, and
the values are rounded once to the dense dtype. What llama.cpp's converter changes is undone:

    permute   row 2·j + i of each head → row i·(size // 2) + j: its two halves were interleaved, for rotary positions
    plus      the number that was added to every value

Layout: gguf.quants; https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from suture.errors import MissingExtra
from suture.formats.dtypes import DTYPES, Array, from_float
from suture.formats.quantized.base import Dense, Given, Read, Rows, Scheme
from suture.values import Json, Packed, TensorInfo

_BLOCK_VALUES = 1 << 18  # decoded at a time: what a core's cache holds of them and of the steps between
PLAIN = {"F32", "F16", "BF16"}  # types of the format that are dtypes as well, of the same names and bits


def find(given: Given) -> Mapping[str, Dense]:
    """Nothing: a GGUF file has a reader of its own, `formats.gguf`."""
    return {}


def library() -> Any:
    """The package gguf.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra(
            "the package gguf is not installed",
            expected="gguf, which decodes the types of GGUF files",
            do="pip install 'suture[gguf]'",
        ) from error
    return gguf


def is_decodable(kind: str) -> bool:
    """Whether the package gguf can decode a type that it knows."""
    gguf = library()
    number = gguf.GGMLQuantizationType[kind]
    _, n_bytes = gguf.GGML_QUANT_SIZES[number]
    try:
        gguf.dequantize(np.zeros((1, n_bytes), np.uint8), number)
    except NotImplementedError:
        return False
    return True


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense tensor; a vector is one row."""
    gguf = library()
    data, kind, plus = packed.parts["data"], str(packed.settings["type"]), packed.settings.get("plus")
    number, storage = gguf.GGMLQuantizationType[kind], DTYPES[info.dtype].storage
    assert storage is not None
    n_rows = info.n_values // info.shape[-1]
    width = data.n_bytes // n_rows
    size = n_rows // int(packed.settings.get("permute", n_rows))  # of a head, or a row, which stays what it is

    def stored(start: int, stop: int) -> Array:
        raw = np.empty((stop - start, width), np.uint8)
        read(data, start * width, raw)
        return raw

    def blocks(start: int, stop: int) -> Array:
        if size == 1:
            return stored(start, stop)
        first = start // size * size
        heads = stored(first, -(-stop // size) * size).reshape(-1, size // 2, 2, width)
        return np.ascontiguousarray(heads.swapaxes(1, 2).reshape(-1, width)[start - first : stop - first])

    def rows(start: int, stop: int) -> Array:
        raw = blocks(start, stop)
        if kind == info.dtype and plus is None:
            return raw.view(storage)
        values = np.empty((stop - start, info.shape[-1]), storage)
        step = max(1, _BLOCK_VALUES // info.shape[-1])
        with np.errstate(all="ignore"):  # a scale that is not finite is the file's, and no accident of the decoding
            for k in range(0, stop - start, step):
                x = gguf.dequantize(raw[k : k + step], number)
                from_float(x if plus is None else x - np.float32(plus), info.dtype, values[k : k + step])
        return values

    return rows


def words(settings: Json) -> str:
    """GGUF, and how many tensors there are of each type."""
    return "GGUF: " + ", ".join(f"{count} in {kind}" for kind, count in settings.items())


SCHEME = Scheme("gguf", find, open_rows, words)
