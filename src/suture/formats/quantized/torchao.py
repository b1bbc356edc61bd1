"""torchao: tensor subclasses, taken apart into `_weight_qdata`, `_weight_scale` …; the header tells the rest, as JSON.

    Int8Tensor, IntxUnpackedToInt8Tensor    W = (code − zero) · scale, in blocks
    Float8Tensor                            W = code · scale, in blocks; E4M3 or E5M2
    MXTensor                                W = code · scale; E8M0 for a group of columns; E4M3, E5M2 or E2M1
    NVFP4Tensor                             W = code · (per_tensor_scale · scale); E4M3 for 16 columns; E2M1
    Int4Tensor                              W = code · scale + zero; codes from −8 on, two in a byte; groups × rows
    Int4TilePackedTo4dTensor                W = code · scale + zero; codes in the order of a tensor core of NVIDIA

All but the last two are what the library's `dequantize` gives, in the dtype that the tensor had. With those two it only
multiplies, on a GPU: the sum is rounded once, as tinygemm's kernel does it (one fused operation in bfloat16). Scales
can be swizzled, in tiles of 128 × 4, as cuBLAS wants them. Where inputs are multiplied by `act_pre_scale`, the columns
of W are instead: exactly, in float32. Other scales of activations are parts that no dense weight needs.
Only what `flatten_tensor_state_dict` writes is read; torchao stores other subclasses in pickles.
Layout: torchao.prototype.safetensors; aten/src/ATen/native/cuda/int4mm.cu; https://arxiv.org/abs/2507.16099.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from suture.errors import FormatError
from suture.formats.dtypes import DTYPES
from suture.formats.files import quoted
from suture.formats.quantized.base import FLOATS, Dense, Given, Scheme, Tensors, dense, malformed
from suture.formats.quantized.torchao_rows import TILE, open_rows
from suture.values import Json, Packed, TensorInfo

_Stored = Mapping[str, TensorInfo]  # the parts of a tensor, by the library's names of them
_DTYPES = {DTYPES[name].torch_name: name for name in (*FLOATS, "F8_E4M3", "F8_E5M2", "F4")}
# What must be there, and what can be.
_KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Int8Tensor": (
        ("qdata", "scale"),
        ("zero_point", "act_quant_scale", "act_quant_zero_point", "act_pre_scale"),
    ),
    "IntxUnpackedToInt8Tensor": (("qdata", "scale", "zero_point"), ()),
    "Float8Tensor": (("qdata", "scale"), ()),
    "MXTensor": (("qdata", "scale"), ()),
    "NVFP4Tensor": (("qdata", "scale"), ("per_tensor_scale", "act_per_tensor_scale")),
    "Int4Tensor": (("qdata", "scale", "zero_point"), ("act_pre_scale",)),
    "Int4TilePackedTo4dTensor": (("qdata", "scale_and_zero"), ("act_pre_scale",)),
}
_SUFFIXES = sorted({f"_{name}" for kind in _KINDS.values() for names in kind for name in names}, key=len, reverse=True)
_TILES = "Int4TilePackedTo4dTensor"


def find(given: Given) -> Mapping[str, Dense]:
    """The tensors that the headers' metadata describes as subclasses."""
    stored = _stored(given.tensors)
    entries = dict(_entries(given.metadata))
    if any(entry["_type"] == _TILES for entry in entries.values()):
        _refuse_amd(given.settings)
    found = {}
    for name, parts in stored.items():
        if name not in entries:
            first = parts[min(parts)]
            malformed(first, "no header's metadata describes it", f"an entry {quoted(name)}, as torchao writes it")
        found[name] = _dense(name, parts, entries[name])
    for name in sorted(entries.keys() - stored.keys()):
        module, _, parameter = name.rpartition(".")
        _wrong(name, f"there is no {quoted(f'{module}._{parameter}_qdata')} in any file", "all that it is made of")
    return found


def _stored(tensors: Tensors) -> dict[str, _Stored]:
    """Parts, X._weight_qdata …, by the name of their tensor, X.weight."""
    found: dict[str, dict[str, TensorInfo]] = {}
    for name in sorted(tensors):
        module, separator, last = name.rpartition(".")
        suffix = next((s for s in _SUFFIXES if last.endswith(s)), None)
        if separator and suffix and last.startswith("_") and len(last) > len(suffix) + 1:
            found.setdefault(f"{module}.{last[1 : -len(suffix)]}", {})[suffix[1:]] = tensors[name]
    # A parameter whose own name ends like a part has no codes.
    return {name: parts for name, parts in found.items() if "qdata" in parts}


def _entries(metadata: Mapping[str, str]) -> Iterator[tuple[str, Json]]:
    """What the metadata says of tensors that are not plain."""
    for name, text in metadata.items():
        if not text.startswith("{"):
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("_type"), str) and "_tensor_data_names" in entry:
            yield name, entry


def _dense(name: str, stored: _Stored, entry: Json) -> Dense:
    kind, fields = entry["_type"], entry.get("_data")
    if kind not in _KINDS:
        _wrong(name, f"a {quoted(kind)}, which is not read", f"one of {', '.join(_KINDS)}")
    if not isinstance(fields, dict):
        _wrong(name, "its fields are no table", "what torchao writes")
    codes = stored["qdata"]
    if not codes.n_values or len(codes.shape) < 2:
        malformed(codes, f"{codes.dtype} {list(codes.shape)}", "a matrix or more")
    _check_parts(name, kind, stored, entry["_tensor_data_names"])
    checks = {"Int4Tensor": _int4, _TILES: _tiles, "MXTensor": _mx, "NVFP4Tensor": _nvfp4}
    shape, dtype, settings = checks.get(kind, _blocks)(name, kind, stored, fields)
    if (before := stored.get("act_pre_scale")) is not None:
        if before.dtype not in FLOATS or before.n_values != shape[-1]:
            malformed(before, f"{before.dtype} {list(before.shape)}", f"{shape[-1]:,} floats, one for each column")
        settings["rounded"], dtype = dtype, "F32"
    return dense(name, dtype, shape, Packed(SCHEME.name, dict(stored), {"kind": kind, **settings}), "qdata")


def _check_parts(name: str, kind: str, stored: _Stored, listed: Any) -> None:
    """The parts are those that the header names, and those that the kind has."""
    needed, optional = _KINDS[kind]
    listed = [str(part) for part in listed] if isinstance(listed, list) else []
    for part in dict.fromkeys((*needed, *listed)):
        if part not in stored:
            malformed(stored["qdata"], f"there is no {part} of {name}", f"{', '.join(needed)}, in any of the files")
    for part in stored:
        if part not in (*needed, *optional) or part not in listed:
            malformed(stored[part], f"not a part of a {kind}, by its header", ", ".join(listed))


_Checked = tuple[tuple[int, ...], str, dict[str, Any]]  # shape, dtype, settings


def _blocks(name: str, kind: str, stored: _Stored, fields: Json) -> _Checked:
    """Integers or floats of 8 bits, with a scale for each block."""
    codes, scale = stored["qdata"], stored["scale"]
    is_float = kind == "Float8Tensor"
    if codes.dtype not in (("F8_E4M3", "F8_E5M2") if is_float else ("I8",)):
        malformed(codes, codes.dtype, "F8_E4M3 or F8_E5M2" if is_float else "I8")
    shape = codes.shape
    block = _of_scales(shape, scale) if is_float else _sizes(name, fields, "block_size", len(shape))
    if any(n % m for n, m in zip(shape, block, strict=True)):
        _wrong(name, f"blocks of {list(block)}", f"sizes that divide {list(shape)}")
    n_blocks = math.prod(n // m for n, m in zip(shape, block, strict=True))
    for part in ("scale", "zero_point"):
        if (info := stored.get(part)) is not None:
            types = FLOATS if part == "scale" else ("I8", *FLOATS)
            if info.dtype not in types or info.n_values != n_blocks:
                malformed(info, f"{info.dtype} {list(info.shape)}", f"{n_blocks:,} values of {' or '.join(types)}")
    return shape, _dtype(name, fields, "dtype", FLOATS), {"block": list(block)}


def _of_scales(shape: tuple[int, ...], scale: TensorInfo) -> tuple[int, ...]:
    """The block that a scale stands for: the library takes it from the shapes."""
    if scale.n_values == 1:
        return shape
    if len(scale.shape) != len(shape) or any(not m or n % m for n, m in zip(shape, scale.shape, strict=True)):
        malformed(scale, f"{scale.dtype} {list(scale.shape)}", f"one, or sizes that divide {list(shape)}")
    return tuple(n // m for n, m in zip(shape, scale.shape, strict=True))


def _mx(name: str, kind: str, stored: _Stored, fields: Json) -> _Checked:
    codes = stored["qdata"]
    elements = _dtype(name, fields, "elem_dtype", ("F8_E4M3", "F8_E5M2", "F4"))
    if codes.dtype != ("U8" if elements == "F4" else elements):
        malformed(codes, codes.dtype, "U8 for E2M1" if elements == "F4" else elements)
    size = _number(name, fields, "block_size")
    shape = (*codes.shape[:-1], codes.shape[-1] * (2 if elements == "F4" else 1))
    return shape, *_small(name, stored["scale"], "F8_E8M0", shape, size, fields)


def _nvfp4(name: str, kind: str, stored: _Stored, fields: Json) -> _Checked:
    codes, of_all = stored["qdata"], stored.get("per_tensor_scale")
    if codes.dtype != "U8":
        malformed(codes, codes.dtype, "U8, two codes in each")
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    per_expert = (shape[0], 1, 1) if len(shape) == 3 else ()
    if of_all is not None and (of_all.dtype != "F32" or of_all.shape not in ((), per_expert)):
        malformed(of_all, f"{of_all.dtype} {list(of_all.shape)}", "F32, one value, or one for each expert")
    return shape, *_small(name, stored["scale"], "F8_E4M3", shape, _number(name, fields, "block_size"), fields)


def _small(
    name: str, scale: TensorInfo, dtype: str, shape: tuple[int, ...], size: int, fields: Json
) -> tuple[str, dict[str, Any]]:
    """Groups of columns whose scales have 8 bits, and may be swizzled."""
    rows, groups = math.prod(shape[:-1]), shape[-1] // size
    swizzled = fields.get("is_swizzled_scales", False)
    n_scales = -(-rows // 128) * -(-groups // 4) * 512 if swizzled is True else rows * groups
    if shape[-1] % size or scale.dtype != dtype or scale.n_values != n_scales:
        found = f"{scale.dtype} {list(scale.shape)}, for groups of {size} in {list(shape)}"
        malformed(scale, found, f"{n_scales:,} values of {dtype}")
    block = [1] * (len(shape) - 1) + [size]
    return _dtype(name, fields, "orig_dtype", FLOATS), {"block": block, "swizzled": swizzled is True}


def _int4(name: str, kind: str, stored: _Stored, fields: Json) -> _Checked:
    codes, scale = stored["qdata"], stored["scale"]
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    if codes.dtype not in ("I8", "U8") or _sizes(name, fields, "shape", len(shape)) != shape or len(shape) > 3:
        malformed(codes, f"{codes.dtype} {list(codes.shape)}", f"I8, half of {fields.get('shape')}")
    block = _sizes(name, fields, "block_size", len(shape))
    if any(size != 1 for size in block[:-1]) or shape[-1] % block[-1]:
        _wrong(name, f"blocks of {list(block)}", f"groups that divide {shape[-1]} columns")
    grid = (*shape[:-2], shape[-1] // block[-1], shape[-2])
    for part in ("scale", "zero_point"):
        info = stored[part]
        if info.dtype not in FLOATS or info.shape != grid:
            malformed(info, f"{info.dtype} {list(info.shape)}", f"{list(grid)} of {' or '.join(FLOATS)}")
    return shape, scale.dtype, {"width": block[-1]}


def _tiles(name: str, kind: str, stored: _Stored, fields: Json) -> _Checked:
    codes, both = stored["qdata"], stored["scale_and_zero"]
    shape, block = _sizes(name, fields, "shape", 2), _sizes(name, fields, "block_size", 2)
    down, across = codes.shape[:2] if len(codes.shape) == 4 else (0, 0)
    fits = down == -(-shape[0] // 8) and across * TILE >= shape[1] and codes.shape[2:] == (32, 4)
    if codes.dtype != "I32" or not fits:
        malformed(codes, f"{codes.dtype} {list(codes.shape)}", f"I32 in tiles of {list(shape)}: rows / 8, …, 32, 4")
    if block[0] != 1 or across * TILE % block[1]:
        _wrong(name, f"blocks of {list(block)}", f"groups that divide {across * TILE} columns")
    grid = (across * TILE // block[1], down * 8, 2)
    if both.dtype != "BF16" or both.shape != grid:
        malformed(both, f"{both.dtype} {list(both.shape)}", f"BF16 {list(grid)}")
    return shape, "BF16", {"width": block[1]}


def _refuse_amd(settings: Json) -> None:
    """Tiles of 16 rows are those of AMD's cores, in another order that the tensors' shapes do not tell."""
    todo: list[Any] = [settings.get("quant_type")]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            if (size := value.get("int4_tile_packed_ntile", 8)) != 8:
                _wrong("quant_type", f"int4_tile_packed_ntile is {quoted(size)}", "8: AMD's tiles are not read")
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _sizes(name: str, fields: Json, key: str, n: int) -> tuple[int, ...]:
    value = fields.get(key)
    if not isinstance(value, list) or len(value) != n or not all(type(size) is int and size > 0 for size in value):
        _wrong(name, f"{key} is {quoted(value)}", f"{n} sizes")
    return tuple(value)


def _number(name: str, fields: Json, key: str) -> int:
    value = fields.get(key)
    if type(value) is not int or value < 1:
        _wrong(name, f"{key} is {quoted(value)}", "a number of columns")
    return int(value)


def _dtype(name: str, fields: Json, key: str, allowed: tuple[str, ...]) -> str:
    value = fields.get(key)
    said = value.get("_data") if isinstance(value, dict) else value
    dtype = _DTYPES.get(said) if isinstance(said, str) else None
    if dtype not in allowed:
        _wrong(name, f"{key} is {quoted(said)}", f"one of {', '.join(DTYPES[dtype].torch_name for dtype in allowed)}")
    assert dtype is not None
    return dtype


def _wrong(name: str, found: str, expected: str) -> NoReturn:
    raise FormatError(
        found, where=f"metadata: {quoted(name)}", expected=expected, do="Download the quantised model again."
    )


def words(settings: Json) -> str:
    """Such as "torchao Int4WeightOnlyConfig"."""
    kinds = settings.get("quant_type")
    default = kinds.get("default") if isinstance(kinds, Mapping) else kinds
    kind = default.get("_type") if isinstance(default, Mapping) else default
    return f"torchao {kind}" if isinstance(kind, str) else "torchao"


SCHEME = Scheme("torchao", find, open_rows, words)
