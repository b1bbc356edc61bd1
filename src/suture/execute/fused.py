"""The compiled formulas of LoRA and DoRA on weights in 16 and 32 bits: see fused.c for what they compute.

LoRA gives the bytes that numpy gives on a BLAS that adds in order. Both give the same bytes on every CPU, and take a
third of numpy's time or less.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from suture import compiled
from suture.compiled import address
from suture.formats.dtypes import Array
from suture.methods.base import Factors


@dataclass(frozen=True, slots=True)
class Fused:
    """The library's functions, by the types of what is read and written; `tile` is the width of a packed tile."""

    loras: Mapping[tuple[str, str], Callable[..., None]]
    lengths: Mapping[str, Callable[..., None]]
    tile: int

    def pack(self, f: Factors) -> Factors:
        """The factors with A (rank, cols) in tiles of columns, each contiguous, the last one filled up."""
        a = f["A"]
        rank, cols = a.shape
        n = -(-cols // self.tile)
        if cols % self.tile:
            a = np.concatenate([a, np.zeros((rank, n * self.tile - cols), np.float32)], axis=1)
        return {**f, "A": np.ascontiguousarray(a.reshape(rank, n, self.tile).transpose(1, 0, 2))}

    def lora(self, w: Array, out: Array, f: Factors, s: float, dtypes: tuple[str, str]) -> None:
        """out = round(w + s · B A).

        Args:
            w, out: stored values, (rows, cols), contiguous; may be the same memory where the types are the same.
            f: B (rows, rank) and the packed A, float32, contiguous.
            dtypes: of w and of out.
        """
        b, (rows, cols) = f["B"], w.shape
        self.loras[dtypes](address(w), address(out), address(b), address(f["A"]), s, rows, cols, b.shape[1])

    def dora(self, v: Array, out: Array, m: Array, dtype: str) -> None:
        """out = round(m · v / ‖v‖), row by row.

        Args:
            v: W + s · B A in float32, (rows, cols), contiguous.
            out: stored values of `dtype`, of the same shape; may be the same memory as v.
            m: (rows,) float32.
        """
        self.lengths[dtype](address(v), address(out), address(m), *v.shape)


@functools.cache
def load() -> Fused | None:
    """The compiled formulas, where they were built."""
    library = compiled.library()
    if library is None:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    loras = compiled.functions(library, "suture_lora", [*[pointer] * 4, ctypes.c_float, *[size] * 3])
    lengths: dict[str, Any] = {dtype: getattr(library, f"suture_lengths_{dtype.lower()}") for dtype in compiled.TYPES}
    for function in lengths.values():
        function.argtypes, function.restype = [*[pointer] * 3, *[size] * 2], None
    return Fused(loras, lengths, int(library.suture_tile()))
