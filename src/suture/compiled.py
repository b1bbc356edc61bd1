"""The package's own compiled library, where it was built: the merge's kernel, the verifier's arithmetic, a decoder.

Without it everything works as well, with numpy, and slower. SUTURE_KERNEL=numpy asks for that.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

LIBRARY = Path(__file__).with_name("_compiled.clib")  # a library of C, not an extension of Python
VERSION = 4  # of the functions, and of the bytes that they give
TYPES = ("F32", "BF16", "F16")
PAIRS = tuple(itertools.product(TYPES, TYPES))
RANDOM_PAIRS = tuple(pair for pair in PAIRS if pair[1] != "F32")  # of what may be rounded at random


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library; None where there is none that can be used."""
    return None if why_not() else ctypes.CDLL(str(LIBRARY))


@functools.cache
def why_not() -> str:
    """Why there is no compiled code, in words; empty where there is."""
    if os.environ.get("SUTURE_KERNEL") == "numpy":
        return "SUTURE_KERNEL=numpy asks for numpy's"
    if not LIBRARY.is_file():
        return "there was no C compiler when Suture was installed"
    try:
        version = ctypes.CDLL(str(LIBRARY)).suture_version()
    except (OSError, AttributeError) as error:
        return f"the compiled library cannot be loaded: {error}"
    return "" if version == VERSION else "the compiled library is of another version; install Suture again"


def functions(
    found: ctypes.CDLL, prefix: str, argtypes: list[Any], restype: Any = None, pairs: Iterable[tuple[str, str]] = PAIRS
) -> Mapping[tuple[str, str], Any]:
    """The library's functions `prefix`_FROM_TO, by the types of what is read and of what is written or judged."""
    by_pair = {pair: getattr(found, f"{prefix}_{'_'.join(pair).lower()}") for pair in pairs}
    for function in by_pair.values():
        function.argtypes, function.restype = argtypes, restype
    return by_pair


def address(array: npt.NDArray[Any]) -> int:
    """Where a contiguous array's first value lies."""
    where: int = array.__array_interface__["data"][0]
    return where
