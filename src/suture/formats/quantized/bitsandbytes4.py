"""bitsandbytes in 4 bits: NF4 and FP4, in blocks along the flattened weight, their scales quantised again or not.

    value[i] = map[code[i]] · absmax[i // blocksize]
    absmax[j] = nested_map[stored[j]] · nested_absmax[j // nested_blocksize] + offset       where the scales are nested

Two codes lie in a byte, the first one in the upper half. Sums and products are in float32, rounded once to the dtype
that the weight had. Layout: bitsandbytes.functional.QuantState.as_dict; https://arxiv.org/abs/2305.14314.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from suture import compiled
from suture.formats.dtypes import DTYPES, Array, from_float
from suture.formats.quantized.base import FLOATS, Dense, Given, Read, Rows, Scheme, dense, malformed, part, whole
from suture.formats.quantized.bitsandbytes_encode import FOUR_BITS
from suture.values import Json, Packed, TensorInfo

STATE = ".quant_state.bitsandbytes__"
TYPES = ("nf4", "fp4")
_DTYPES = {DTYPES[name].torch_name: name for name in FLOATS}
_MAX_STATE_BYTES = 1 << 16


def find(given: Given) -> Mapping[str, Dense]:
    """The weights beside which a quant_state stands."""
    found = {}
    for name in sorted(given.tensors):
        weight, separator, kind = name.rpartition(STATE)
        if separator:
            found[weight] = _dense(weight, kind, given.tensors[name], given)
    return found


def _dense(name: str, kind: str, stored_state: TensorInfo, given: Given) -> Dense:
    tensors, state = given.tensors, _state(stored_state, given.read)
    if kind not in TYPES or state.get("quant_type") != kind:
        found = f"quant_type {state.get('quant_type')!r} under the name of {kind!r}"
        malformed(stored_state, found, " or ".join(TYPES))
    weight = part(tensors, name, stored_state)
    shape, size = _shape(state, stored_state), _number(state, "blocksize", stored_state)
    dtype = _DTYPES.get(str(state.get("dtype")))
    if dtype is None:
        malformed(stored_state, f"dtype {state.get('dtype')!r}", ", ".join(_DTYPES))
    n = math.prod(shape)
    parts = {
        "codes": weight,
        "absmax": part(tensors, f"{name}.absmax", weight),
        "map": part(tensors, f"{name}.quant_map", weight),
        "state": stored_state,
    }
    n_blocks = -(-n // size)
    _require(weight, "U8", -(-n // 2))
    _require(parts["map"], "F32", 16)
    settings: dict[str, Any] = {"type": kind, "blocksize": size}
    if "nested_blocksize" in state:
        nested = settings["nested_blocksize"] = _number(state, "nested_blocksize", stored_state)
        settings["offset"] = state.get("nested_offset")
        if type(settings["offset"]) is not float:
            malformed(stored_state, f"nested_offset {settings['offset']!r}", "a number")
        parts["nested_absmax"] = part(tensors, f"{name}.nested_absmax", weight)
        parts["nested_map"] = part(tensors, f"{name}.nested_quant_map", weight)
        _require(parts["absmax"], "U8", n_blocks)
        _require(parts["nested_absmax"], "F32", -(-n_blocks // nested))
        _require(parts["nested_map"], "F32", 256)
    else:
        _require(parts["absmax"], "F32", n_blocks)
    return dense(name, dtype, shape, Packed(SCHEME.name, parts, settings), "codes")


def _state(stored: TensorInfo, read: Read) -> Json:
    """The JSON object that a quant_state tensor holds."""
    if stored.dtype != "U8" or stored.n_bytes > _MAX_STATE_BYTES:
        malformed(stored, f"{stored.n_bytes} bytes of {stored.dtype}", "a JSON object, as U8")
    try:
        state = json.loads(whole(stored, read).tobytes())
    except (ValueError, RecursionError) as error:
        malformed(stored, f"not JSON: {error}", "a JSON object, as U8")
    if not isinstance(state, dict):
        malformed(stored, "not a JSON object", "a JSON object, as U8")
    return state


def _shape(state: Json, stored: TensorInfo) -> tuple[int, ...]:
    shape = state.get("shape")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
        malformed(stored, f"shape {shape!r}", "the sizes of the dense weight")
    return tuple(shape)


def _number(state: Json, key: str, stored: TensorInfo) -> int:
    value = state.get(key)
    if type(value) is not int or not 0 < value <= 1 << 20:
        malformed(stored, f"{key} {value!r}", "a number of values")
    return value


def _require(info: TensorInfo, dtype: str, n_values: int) -> None:
    if info.dtype != dtype or info.n_values != n_values:
        malformed(info, f"{info.n_values:,} values of {info.dtype}", f"{n_values:,} of {dtype}")


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense weight. The scales are decoded once, the codes as they are needed."""
    absmax, size = _absmax(packed, read), int(packed.settings["blocksize"])
    codes, values = packed.parts["codes"], whole(packed.parts["map"], read).reshape(-1)
    cols, decode = info.shape[-1], decoder(info.dtype)

    def rows(start: int, stop: int) -> Array:
        first, last = start * cols, stop * cols
        stored = np.empty(-(-last // 2) - first // 2, np.uint8)
        read(codes, first // 2, stored)
        return decode(stored, values, absmax[first // size :], first, last, size).reshape(stop - start, cols)

    return rows


@functools.cache
def decoder(dtype: str) -> Callable[[Array, Array, Array, int, int, int], Array]:
    """(bytes, map, scales, first, last, size) → values first:last; bytes and scales begin with those of `first`."""
    library = compiled.library()
    if library is None:
        return functools.partial(_decoded, dtype=dtype)
    function = getattr(library, f"suture_four_bits_{dtype.lower()}")
    function.argtypes, function.restype = [*[ctypes.c_void_p] * 4, *[ctypes.c_size_t] * 3], None

    def decode(stored: Array, values: Array, absmax: Array, first: int, last: int, size: int) -> Array:
        out = np.empty(last - first, DTYPES[dtype].storage)
        function(*map(compiled.address, (stored, values, absmax, out)), first, last, size)
        return out

    return decode


def _decoded(  # noqa: PLR0913 - what the compiled decoder takes, and the dtype
    stored: Array, values: Array, absmax: Array, first: int, last: int, size: int, dtype: str
) -> Array:
    """The same with numpy."""
    pairs = np.stack([np.repeat(values, 16), np.tile(values, 16)], axis=1)  # of each byte, its two values
    x = pairs[stored].reshape(-1)[first % 2 :][: last - first]
    x *= np.repeat(absmax[: -(-last // size) - first // size], size)[first % size :][: last - first]
    return from_float(x, dtype)


def _absmax(packed: Packed, read: Read) -> Array:
    """The scale of each block, float32."""
    stored = whole(packed.parts["absmax"], read).reshape(-1)
    if "nested_map" not in packed.parts:
        return stored
    outer, values = (whole(packed.parts[role], read).reshape(-1) for role in ("nested_absmax", "nested_map"))
    return nested(stored, values, outer, packed.settings["nested_blocksize"], packed.settings["offset"])


def nested(stored: Array, values: Array, outer: Array, size: int, offset: float) -> Array:
    """Scales, float32, of codes of the map `values` in blocks of `size`, of which `outer` has the scales."""
    scales: Array = values[stored] * np.repeat(outer, size)[: len(stored)]
    scales += np.float32(offset)
    return scales


def words(settings: Json) -> str:
    """Such as "bitsandbytes NF4, nested scales"."""
    kind = str(settings.get("bnb_4bit_quant_type", "fp4")).upper()
    return f"bitsandbytes {kind}" + (", nested scales" if settings.get("bnb_4bit_use_double_quant") else "")


SCHEME = Scheme("bitsandbytes4", find, open_rows, words, FOUR_BITS)
