"""The compiled judge of LoRA's rows, where it was built: see exact.c for its rule, which is that of `judge`."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from suture import compiled
from suture.compiled import address
from suture.noise import Words
from suture.verification.reading import Bytes, Floats


@dataclass(frozen=True, slots=True)
class Product:
    """What a LoRA adds to some rows, s · B A, and the γ of its error: B (rows, r), A (r, cols), float64, contiguous."""

    b: Floats
    a: Floats
    s: float
    gamma: float


class _Rows(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("w", "stored", "b", "a")),
        *((name, ctypes.c_double) for name in ("s", "gamma")),
        *((name, ctypes.c_size_t) for name in ("rows", "cols", "rank")),
        ("bits", ctypes.c_void_p),
    )


@functools.cache
def _functions() -> Mapping[tuple[str, str], Callable[..., float]]:
    return _named("suture_judge", compiled.PAIRS)


@functools.cache
def _random_functions() -> Mapping[tuple[str, str], Callable[..., float]]:
    return _named("suture_judge_random", compiled.RANDOM_PAIRS)


def _named(prefix: str, pairs: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], Callable[..., float]]:
    library = compiled.library()
    if library is None:
        return {}
    return compiled.functions(library, prefix, [ctypes.POINTER(_Rows), ctypes.c_void_p], ctypes.c_double, pairs)


def judge(
    source: Bytes, stored: Bytes, product: Product, dtypes: tuple[str, str], bits: Words | None = None
) -> tuple[npt.NDArray[np.bool_], float] | None:
    """The rows with a value that is not right, or not finite; and the largest distance |stored − exact|.

    Args:
        source, stored: bytes of the same rows before and after.
        dtypes: of source and of stored.
        bits: of each value, where they were rounded at random.

    Returns:
        None where there is no compiled code for these types, or a value is not finite.
    """
    function = (_functions() if bits is None else _random_functions()).get(dtypes)
    if function is None:
        return None
    (rows, rank), cols = product.b.shape, product.a.shape[1]
    doubtful = np.zeros(rows, np.bool_)
    pointers = (address(x) for x in (source, stored, product.b, product.a))
    of_bits = None if bits is None else address(bits)
    largest = function(_Rows(*pointers, product.s, product.gamma, rows, cols, rank, of_bits), address(doubtful))
    return (doubtful, largest) if math.isfinite(largest) else None
