"""The compiled kernel for LoRA on weights in 16 and 32 bits, where it was built: see fused.c for what it computes.

It gives the bytes that numpy's kernel gives on a BLAS that adds in order, on every CPU, and takes a third of the time.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suture.formats.dtypes import Array

LIBRARY = Path(__file__).with_name("_fused.clib")  # a library of C, not an extension of Python
VERSION = 1  # of the bytes that it gives
PAIRS = frozenset({
    ("F32", "F32"), ("BF16", "BF16"), ("F16", "F16"), ("BF16", "F32"), ("F16", "F32"), ("F32", "BF16"), ("F32", "F16"),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fused:
    """The library's functions, by the types of what is read and written; `tile` is the width of a packed tile."""

    functions: dict[tuple[str, str], Callable[..., None]]
    tile: int

    def pack(self, a: Array) -> Array:
        """A (rank, cols) in tiles of columns, each contiguous, the last one filled up: (tiles, rank, tile)."""
        rank, cols = a.shape
        n = -(-cols // self.tile)
        if cols % self.tile:
            a = np.concatenate([a, np.zeros((rank, n * self.tile - cols), np.float32)], axis=1)
        return np.ascontiguousarray(a.reshape(rank, n, self.tile).transpose(1, 0, 2))

    def lora(self, w: Array, out: Array, b: Array, a: Array, s: float, dtypes: tuple[str, str]) -> None:
        """out = round(w + s · B A).

        Args:
            w, out: stored values, (rows, cols), contiguous; may be the same memory where the types are the same.
            b: (rows, rank) float32, contiguous.
            a: packed.
            dtypes: of w and of out.
        """
        rows, cols = w.shape
        pointers = (ctypes.c_void_p(x.ctypes.data) for x in (w, out, b, a))
        self.functions[dtypes](*pointers, ctypes.c_float(s), rows, cols, b.shape[1])


@functools.cache
def load() -> Fused | None:
    """The compiled kernel; None where it was not built, or SUTURE_KERNEL=numpy asks for the other one."""
    if os.environ.get("SUTURE_KERNEL") == "numpy" or not LIBRARY.is_file():
        return None
    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.suture_version() != VERSION:
            return None
        functions = {pair: getattr(library, "suture_lora_{}_{}".format(*pair).lower()) for pair in sorted(PAIRS)}
    except (OSError, AttributeError):  # built for another machine, or by another version
        return None
    for function in functions.values():
        function.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_float, *[ctypes.c_size_t] * 3]
        function.restype = None
    return Fused(functions, int(library.suture_tile()))
