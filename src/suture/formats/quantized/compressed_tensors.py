"""compressed-tensors: what llm-compressor and vLLM store, in all formats whose weights are dense matrices of few bits.

    W[i, j] = (code[i, j] − zero[i // m, j // n]) · scale[i // m, j // n]

m × n is the whole matrix, a row, a group of columns in a row, or a block; `weight_g_idx` gives each column its group.
Beside `weight` (int8, F8_E4M3) or `weight_packed` stand

    pack-quantized    `weight_scale`, `weight_shape`, `weight_zero_point` if asymmetric. Integers of 1 to 8 bits, plus
                      2^(bits - 1), without gaps in int32: the codes along the columns, the zeros along the rows
    int-, float-, naive-quantized         `weight_scale`, `weight_zero_point`
    nvfp4-pack-quantized                  `weight_scale`, F8_E4M3 for 16 columns, over `weight_global_scale`; E2M1
    mxfp4-, mxfp6-pack-, mxfp8-quantized  `weight_scale`, E8M0 for 32 columns; E2M1, E2M3, F8_E4M3

The product is rounded once to the dtype of the scales, or to BF16 where these have 8 bits. Scales of activations and of
the KV cache are parts of the weights of their modules: the dense model has no use for them. Those of an attention
module, which has no weight itself, go with the first weight below it.
Layout: compressed_tensors.compressors; https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from suture.formats.quantized.base import FLOATS, Dense, Given, Scheme, Tensors, dense, malformed, part, whole
from suture.formats.quantized.compressed_tensors_config import (
    BYTES,
    DENSE,
    MXFP4,
    MXFP6,
    MXFP8,
    NVFP4,
    PACKED,
    Group,
    groups_of,
    words,
)
from suture.formats.quantized.compressed_tensors_encode import QUANTIZER
from suture.formats.quantized.compressed_tensors_rows import open_rows
from suture.values import Packed, TensorInfo

_OF_WEIGHT = (
    "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale",
)  # fmt: skip
_OF_ACTIVATIONS = tuple(
    f"{what}_{kind}" for what in ("input", "output", "q", "k", "v") for kind in ("scale", "zero_point", "global_scale")
)
_CODES = ("I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "U8", "I32", "I16")
_STEADY = ("compressed", "decompressed")  # quantization_status where no float weight is rounded each time it is used
_SCALES: Mapping[str, tuple[str, ...]] = {NVFP4: ("F8_E4M3",), MXFP4: ("U8",), MXFP6: ("U8",), MXFP8: ("U8",)}
_Stored = Mapping[str, TensorInfo]  # what stands in a module, by the last part of its name


@dataclass(frozen=True, slots=True)
class _Module:
    """A module with a weight: its name, the weight as it is stored, all that stands in it, and what the config says."""

    name: str
    weight: TensorInfo
    stored: _Stored
    groups: tuple[Group, ...]
    given: Given

    def part(self, kind: str) -> TensorInfo:
        return part(self.given.tensors, f"{self.name}.{kind}", self.weight)


def find(given: Given) -> Mapping[str, Dense]:
    """The weights that are packed, or beside which scales stand."""
    groups = groups_of(given.settings)
    found: dict[str, Dense] = {}
    loose: dict[str, _Stored] = {}
    for name, stored in _modules(given.tensors).items():
        weight = stored.get("weight_packed", stored.get("weight"))
        if weight is not None:
            one = _dense(_Module(name, weight, stored, groups, given))
            found[one.info.name] = one
        elif any(kind in stored for kind in _OF_WEIGHT):
            part(given.tensors, f"{name}.weight", next(iter(stored.values())))
        else:
            loose[name] = stored
    packed = sorted(found)
    floats = {n: t for n, t in given.tensors.items() if t.dtype in FLOATS and t.shape} if loose else {}
    plain = sorted(name for name in floats if name.endswith(".weight"))
    for name, stored in loose.items():
        if (carrier := _first_below(name, packed) or _first_below(name, plain)) is not None:
            more = {info.name: info for info in stored.values()}
            found[carrier] = _with(found.get(carrier) or _plain(given.tensors[carrier]), more)
    return found


def _modules(tensors: Tensors) -> dict[str, _Stored]:
    """The modules in which something stands that belongs to quantisation."""
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name in sorted(tensors):
        module, separator, kind = name.rpartition(".")
        codes = kind == "weight" and tensors[name].dtype in _CODES
        if separator and (codes or kind in _OF_WEIGHT or kind in _OF_ACTIVATIONS):
            modules.setdefault(module, {})[kind] = tensors[name]
    for module, stored in modules.items():
        if f"{module}.weight" in tensors:
            stored["weight"] = tensors[f"{module}.weight"]
    return dict(modules)


def _first_below(module: str, names: Sequence[str]) -> str | None:
    """The first of these names, which are sorted, that lies below a module."""
    i = bisect_left(names, f"{module}.")
    return names[i] if i < len(names) and names[i].startswith(f"{module}.") else None


def _with(one: Dense, more: _Stored) -> Dense:
    """A weight with more parts, which decoding does not need."""
    return one._replace(packed=replace(one.packed, parts={**one.packed.parts, **more}))


def _dense(at: _Module) -> Dense:
    if "weight_packed" in at.stored and "weight" in at.stored:
        malformed(at.weight, f"there is a {at.name}.weight as well", "one of the two")
    if at.weight.dtype in FLOATS and at.weight.shape and "weight_packed" not in at.stored:
        return _unpacked(at)
    readers: Mapping[tuple[bool, str], Callable[[_Module], Dense]] = {
        (True, "I32"): _integers,
        (True, "U8"): _floats,
        (False, "I8"): _bytes,
        (False, "F8_E4M3"): _bytes,
    }
    reader = readers.get(("weight_packed" in at.stored, at.weight.dtype))
    if reader is None or len(at.weight.shape) != 2 or not at.weight.n_values:
        types = " or ".join(dtype for is_packed, dtype in readers if is_packed == ("weight_packed" in at.stored))
        malformed(at.weight, f"{at.weight.dtype} {list(at.weight.shape)}", f"a matrix of {types}")
    one = reader(at)
    known = {info.name for info in one.packed.parts.values()}
    more = {kind: info for kind, info in at.stored.items() if info.name not in known}
    if needless := sorted(kind for kind in more if kind in _OF_WEIGHT):
        malformed(more[needless[0]], f"beside {at.weight.name}", "only what the weight's format needs")
    return _with(one, more)


def _unpacked(at: _Module) -> Dense:
    """A weight in floats: its scales have nothing to do, if it is not rounded with them each time it is used."""
    status = at.given.settings.get("quantization_status", "initialized")
    is_dense = at.given.settings.get("format") == DENSE or any(group.layouts == (DENSE,) for group in at.groups)
    if "weight_scale" in at.stored and not (status == "decompressed" or (is_dense and status in _STEADY)):
        found = f"{at.weight.dtype} beside a scale, of status {status!r}"
        malformed(at.weight, found, "codes, or weights of format 'dense' whose status is 'compressed'")
    return _with(_plain(at.weight), {kind: info for kind, info in at.stored.items() if info is not at.weight})


def _plain(weight: TensorInfo) -> Dense:
    return dense(weight.name, weight.dtype, weight.shape, Packed(SCHEME.name, {"codes": weight}, {}), "codes")


def _integers(at: _Module) -> Dense:
    """Integers in int32."""
    sizes = at.part("weight_shape")
    if sizes.dtype not in ("I64", "I32") or sizes.n_values != 2:
        malformed(sizes, f"{sizes.dtype} {list(sizes.shape)}", "two integers")
    rows, cols = (int(n) for n in whole(sizes, at.given.read).reshape(-1))
    if rows != at.weight.shape[0] or cols < 1:
        malformed(sizes, f"{rows} × {cols}", f"{at.weight.shape[0]} rows, as {at.weight.name} has")
    fitting = (g for g in at.groups if g.kind == "int" and at.weight.shape[1] == -(-cols * g.bits // 32))
    group = _group(at, PACKED, (rows, cols), fitting)
    parts = {"codes": at.weight, "scales": at.part("weight_scale"), "shape": sizes}
    if not group.symmetric:
        parts["zeros"] = at.part("weight_zero_point")
        if "group" in group.strategy or group.strategy == "channel":
            _require(parts["zeros"], "I32", (-(-rows * group.bits // 32), group.grid((rows, cols))[1]))
        else:
            _require(parts["zeros"], "I8", parts["scales"].shape)
    return _finished(at, (rows, cols), "I32", group, parts)


def _bytes(at: _Module) -> Dense:
    """Integers or floats of 8 bits."""
    kind = "int" if at.weight.dtype == "I8" else "float"
    scales = at.part("weight_scale")
    layout = MXFP8 if kind == "float" and scales.dtype == "U8" else BYTES
    fitting = (g for g in at.groups if g.kind == kind and (kind == "int" or g.bits == 8))
    group = _group(at, layout, at.weight.shape, fitting)
    parts = {"codes": at.weight, "scales": scales}
    if kind == "int" and ("weight_zero_point" in at.stored or not group.symmetric):
        parts["zeros"] = at.part("weight_zero_point")
        _require(parts["zeros"], "I8", scales.shape)
    return _finished(at, at.weight.shape, at.weight.dtype, group, parts)


def _floats(at: _Module) -> Dense:
    """Floats of 4 or 6 bits."""
    rows, n_bytes = at.weight.shape
    scales = at.part("weight_scale")
    six = scales.dtype == "U8" and len(scales.shape) == 2 and n_bytes == 24 * scales.shape[1]
    shape = (rows, n_bytes * 4 // 3) if six else (rows, n_bytes * 2)
    layout = MXFP6 if six else MXFP4 if scales.dtype == "U8" else NVFP4
    group = _group(at, layout, shape, (g for g in at.groups if g.kind == "float" and g.bits == (6 if six else 4)))
    parts = {"codes": at.weight, "scales": scales}
    if layout == NVFP4:
        parts["global"] = of_all = at.part("weight_global_scale")
        if of_all.dtype != "F32" or of_all.n_values != 1:
            malformed(of_all, f"{of_all.dtype} {list(of_all.shape)}", "one value of F32")
    return _finished(at, shape, "F6_E2M3" if six else "F4", group, parts)


def _group(at: _Module, layout: str, shape: tuple[int, ...], groups: Iterable[Group]) -> Group:
    """The group of the config that describes a weight."""
    scales, types = at.part("weight_scale"), _SCALES.get(layout, FLOATS)
    similar = [group for group in groups if layout in group.layouts]
    if not similar:
        found = f"{at.weight.dtype} {list(at.weight.shape)}, which is {layout} of {shape[0]} × {shape[1]}"
        malformed(at.weight, found, "what a group of quantization_config describes")
    fitting = [g for g in similar if scales.shape == g.grid(shape) or (not g.height and scales.n_values == 1)]
    if scales.dtype not in types or not fitting:
        grids = " or ".join(sorted({str(list(group.grid(shape))) for group in similar}))
        malformed(scales, f"{scales.dtype} {list(scales.shape)}", f"{grids} of {' or '.join(types)}")
    if layout == PACKED:
        fitting = [g for g in fitting if g.symmetric != ("weight_zero_point" in at.stored)] or fitting
    if len({(g.bits if layout == PACKED else 0, g.width or shape[1], g.height or shape[0]) for g in fitting}) > 1:
        malformed(at.weight, f"{len(fitting)} groups of quantization_config describe it", "one")
    return fitting[0]


def _finished(at: _Module, shape: tuple[int, ...], codes: str, group: Group, parts: dict[str, TensorInfo]) -> Dense:
    """The dense weight; its columns may be out of order."""
    settings = {"codes": codes, "bits": group.bits, "width": group.width or shape[1], "height": group.height}
    if (order := at.stored.get("weight_g_idx")) is not None:
        if "group" not in group.strategy:
            malformed(order, f"beside {group}", "groups of columns")
        _require(order, "I64" if order.dtype == "I64" else "I32", (shape[1],))
        parts["order"] = order
    dtype = parts["scales"].dtype if parts["scales"].dtype in FLOATS else "BF16"
    return dense(f"{at.name}.weight", dtype, shape, Packed(SCHEME.name, parts, settings), "codes")


def _require(info: TensorInfo, dtype: str, shape: tuple[int, ...]) -> None:
    if info.dtype != dtype or info.shape != shape:
        malformed(info, f"{info.dtype} {list(info.shape)}", f"{dtype} {list(shape)}")


SCHEME = Scheme("compressed_tensors", find, open_rows, words, QUANTIZER)
