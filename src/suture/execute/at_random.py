"""Values rounded up and down at random: by compiled code where there is some, by numpy with the same bytes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping

import numpy as np

from suture import compiled, noise
from suture.compiled import address
from suture.formats.dtypes import Array, from_float_at_random

CHUNK_VALUES = 1 << 15  # that numpy does in one go: they and their bits stay in a core's cache


def round_at_random(v: Array, dtype: str, key: noise.Words, start: int, out: Array) -> None:
    """out = v as `dtype` stores it: see `from_float_at_random`.

    Args:
        v: float32 or float64, contiguous.
        key: of the tensor's bits: see `noise`.
        start: where the first value lies in the tensor, counted in values.
        out: of v's shape and of the dtype's storage type, contiguous; other memory than v.
    """
    v, out = v.reshape(-1), out.reshape(-1)
    function = _functions().get(dtype)
    if function is not None and v.dtype == np.float32:
        function(address(v), address(out), v.size, address(key), start)
        return
    for at in range(0, v.size, CHUNK_VALUES):
        here = slice(at, min(at + CHUNK_VALUES, v.size))
        from_float_at_random(v[here], dtype, noise.bits(key, start + at, here.stop - at), out[here])


@functools.cache
def _functions() -> Mapping[str, Callable[..., None]]:
    library = compiled.library()
    if library is None:
        return {}
    found = {"BF16": library.suture_at_random_bf16, "F16": library.suture_at_random_f16}
    for function in found.values():
        pointer = ctypes.c_void_p
        function.argtypes, function.restype = [pointer, pointer, ctypes.c_size_t, pointer, ctypes.c_uint64], None
    return found
