"""optimum-quanto: integers of 2, 4 or 8 bits, or floats of 8, as the state dict of its modules names them.

    8 bits        W[i, j] = _scale[i] · _data[i, j]                      I8, F8_E4M3, F8_E5M2, F8_E4M3FNUZ
    2 and 4 bits  W[k, l] = _scale[k] · _data[k, l] − _shift[k]          _shift is of floats
                  W[k, l] = _scale[k] · (_data[k, l] − _shift[k])        _shift is of integers: a zero-point

A row k is a row of the weight, or, where these are longer than 128, a group of its values: W is reshaped to (groups,
32 to 128). The codes of its rows are packed, not those of its columns: `_data._data` has n rows, and bits b · p … of
row r are code row r + p · n. The product and the difference are each rounded to the dtype of the scales, as in the
library's `dequantize`. Scales of inputs and outputs are parts that no dense weight needs.

The files do not tell the shape of a weight in groups: the model's class does. Transformers does not save what it has
quantised with quanto; optimum.quanto.QuantizedModelForCausalLM does, and writes quanto_qmap.json beside its files.
Layout: optimum.quanto.tensor.weights.qbytes, .qbits and optimum.quanto.tensor.packed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from suture.formats.dtypes import Array, to_float
from suture.formats.quantized.base import (
    FLOATS,
    Dense,
    Given,
    Read,
    Rows,
    Scheme,
    dense,
    malformed,
    part,
    some_rows,
    whole,
)
from suture.formats.quantized.piecewise import as_stored, in_pieces, multiply, round_to, subtract
from suture.formats.quantized.small_floats import values_of
from suture.values import Json, Packed, TensorInfo

_KINDS = {"I8": "int8", "F8_E4M3": "float8", "F8_E5M2": "float8", "F8_E4M3FNUZ": "float8"}
_GROUPS = (32, 64, 96, 128)  # how many values of a row can be a group
_ACTIVATIONS = ("input_scale", "output_scale")


def find(given: Given) -> Mapping[str, Dense]:
    """The weights beside which a _scale stands, and the plain ones of modules that scale their inputs or outputs."""
    found: dict[str, Dense] = {}
    for name, info in sorted(given.tensors.items()):
        weight, _, kind = name.rpartition("._")
        if kind == "data" and weight.endswith("._data"):
            one = _few(weight.removesuffix("._data"), info, given)
        elif kind == "data":
            one = _eight(weight, info, given)
        elif kind in ("scale", "shift") and f"{weight}._data" not in given.tensors:
            part(given.tensors, f"{weight}._data._data", info)
            continue
        else:
            continue
        found[one.info.name] = one
    for name, info in sorted(given.tensors.items()):
        module, _, kind = name.rpartition(".")
        weight = f"{module}.weight"
        if kind in _ACTIVATIONS and (owner := found.get(weight) or _plain(given.tensors.get(weight))):
            found[weight] = owner._replace(packed=replace(owner.packed, parts={**owner.packed.parts, kind: info}))
    return found


def _plain(weight: TensorInfo | None) -> Dense | None:
    """A weight that is stored in floats as it is."""
    if weight is None or weight.dtype not in FLOATS or not weight.shape:
        return None
    return dense(weight.name, weight.dtype, weight.shape, Packed(SCHEME.name, {"codes": weight}, {}), "codes")


def _eight(name: str, codes: TensorInfo, given: Given) -> Dense:
    """A byte a value, a scale for each row, or one for all."""
    scale = part(given.tensors, f"{name}._scale", codes)
    if codes.dtype not in _KINDS or len(codes.shape) < 2 or not codes.n_values:
        malformed(codes, f"{codes.dtype} {list(codes.shape)}", f"a matrix of {' or '.join(_KINDS)}")
    _check_kind(codes, _KINDS[codes.dtype], given.settings)
    of_rows = (codes.shape[0], *[1] * (len(codes.shape) - 1))
    if scale.dtype not in FLOATS or (scale.shape != of_rows and scale.n_values != 1):
        malformed(scale, f"{scale.dtype} {list(scale.shape)}", f"{list(of_rows)} of {' or '.join(FLOATS)}")
    if (shift := given.tensors.get(f"{name}._shift")) is not None:
        malformed(shift, f"beside {codes.name}", "none: 8 bits are not shifted")
    return dense(
        name, scale.dtype, codes.shape, Packed(SCHEME.name, {"codes": codes, "scale": scale}, {"bits": 8}), "codes"
    )


def _few(name: str, codes: TensorInfo, given: Given) -> Dense:
    """2 or 4 bits, a scale and a shift for each row of codes."""
    scale, shift = (part(given.tensors, f"{name}.{kind}", codes) for kind in ("_scale", "_shift"))
    if codes.dtype != "U8" or len(codes.shape) < 2 or not codes.n_values:
        malformed(codes, f"{codes.dtype} {list(codes.shape)}", "U8, rows of packed codes")
    n_rows = scale.shape[0] if scale.shape else 0
    if scale.dtype not in FLOATS or scale.shape != (n_rows, *[1] * (len(codes.shape) - 1)):
        malformed(scale, f"{scale.dtype} {list(scale.shape)}", f"{' or '.join(FLOATS)}, one for each row of codes")
    fitting = [bits for bits in (4, 2) if codes.shape[0] == -(-n_rows * bits // 8)]
    said = [bits for bits in fitting if _said(given.settings) in ("", f"int{bits}")]
    if not fitting:
        malformed(scale, f"{n_rows:,} rows beside {codes.shape[0]:,} of {codes.name}", "2 or 4 times as many")
    if not said:
        _check_kind(codes, f"int{fitting[0]}", given.settings)
    if shift.shape != scale.shape or shift.dtype not in (scale.dtype, "U8", "I8"):
        malformed(shift, f"{shift.dtype} {list(shift.shape)}", f"{scale.dtype} or U8 {list(scale.shape)}")
    shape = _shape(name, codes, n_rows, given)
    packed = Packed(SCHEME.name, {"codes": codes, "scale": scale, "shift": shift}, {"bits": said[0]})
    return dense(name, scale.dtype, shape, packed, "codes")


def _shape(name: str, codes: TensorInfo, n_rows: int, given: Given) -> tuple[int, ...]:
    """That of the dense weight. Codes in groups do not tell it."""
    own = (n_rows, *codes.shape[1:])
    shape = given.shapes().get(name)
    if shape is None:
        if len(own) == 2 and own[1] in _GROUPS:
            malformed(codes, f"{n_rows:,} groups of {own[1]}, or as many rows", "a model class that tells the shape")
        return own
    in_groups = len(own) == 2 and math.prod(shape) == math.prod(own) and math.prod(shape[1:]) % own[1] == 0
    if shape != own and not in_groups:
        malformed(codes, f"codes of {list(own)}", f"{list(shape)}, as the model's class has it, or groups of its rows")
    return shape


def _said(settings: Json) -> str:
    """What the config says of weights: "int4", or as the library names it "qint4"; nothing where it does not."""
    return str(settings.get("weights") or "").removeprefix("q")


def _check_kind(codes: TensorInfo, kind: str, settings: Json) -> None:
    if not _said(settings).startswith(kind) and _said(settings):
        malformed(codes, f"codes of {kind}", f"{_said(settings)}, as quantization_config says")


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense weight: scales and shifts are read once, the codes as they are needed."""
    codes, bits = packed.parts["codes"], packed.settings.get("bits")
    if bits is None:
        return as_stored(info, codes, read)
    scale = to_float(whole(packed.parts["scale"], read), info.dtype).reshape(-1, 1)
    shift = whole(packed.parts["shift"], read).reshape(-1, 1) if "shift" in packed.parts else None
    width, cols = math.prod(codes.shape[1:]), info.shape[-1]  # of a row of codes, and of the weight
    n_rows = info.n_values // width
    scale = np.broadcast_to(scale, (n_rows, 1))

    def rows(start: int, stop: int) -> Array:
        first, last = start * cols // width, -(-stop * cols // width)
        stored = _codes(codes, bits, first, last, read).reshape(-1, width)

        def fill(a: int, b: int, x: Array) -> None:
            some = slice(first + a, first + b)
            if shift is not None and shift.dtype.itemsize == 1:
                np.copyto(x, stored[a:b].view(np.int8) - shift[some].view(np.int8))
            else:
                _decode(stored[a:b], codes.dtype, x)
            multiply(x, scale[some], width)
            if shift is not None and shift.dtype.itemsize > 1:
                round_to(x, info.dtype)
                subtract(x, to_float(shift[some], info.dtype), width)

        values = in_pieces(last - first, width, info.dtype, fill).reshape(-1)
        skip = start * cols - first * width
        return values[skip : skip + (stop - start) * cols].reshape(-1, cols)

    return rows


def _codes(info: TensorInfo, bits: int, first: int, last: int, read: Read) -> Array:
    """Some rows of codes, a byte each."""
    if bits == 8:
        return some_rows(info, first, last, read).view(np.uint8)
    n_packed = info.shape[0]
    found: list[Array] = [np.empty((0, *info.shape[1:]), np.uint8)]
    for i in range(first // n_packed, -(-last // n_packed)):
        start, stop = max(first - i * n_packed, 0), min(last - i * n_packed, n_packed)
        found.append(some_rows(info, start, stop, read) >> bits * i & (1 << bits) - 1)
    return found[-1] if len(found) == 2 else np.concatenate(found)


def _decode(codes: Array, dtype: str, x: Array) -> None:
    """Puts the values of codes, as bytes, into float32."""
    if dtype == "U8":
        np.copyto(x, codes)
    elif dtype == "I8":
        np.copyto(x, codes.view(np.int8))
    elif dtype == "F8_E4M3FNUZ":
        np.take(_fnuz(), codes, out=x, mode="clip")
    else:
        np.take(values_of(dtype), codes, out=x, mode="clip")


def _fnuz() -> Array:
    """E4M3 with a bias of 8, one zero, and one code that is not a number: 128."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    sizes = np.ldexp((fraction + 8 * (exponent > 0)).astype(np.float32), np.maximum(exponent, 1) - 11)
    values: Array = np.where(codes > 128, -sizes, sizes)
    values[128] = np.nan
    return values


def words(settings: Json) -> str:
    """Such as "quanto int4"."""
    return f"quanto {_said(settings)}".rstrip()


SCHEME = Scheme("quanto", find, open_rows, words)
