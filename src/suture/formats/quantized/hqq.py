"""HQQ: codes of 8 to 1 bits, with a scale and a zero, neither of which is whole, for each group of values.

    W = ((code − zero) · scale).reshape(out, in)

The codes are a matrix of which each row (axis 1) or each column (axis 0) is a group. The difference and the product are
each rounded to `compute_dtype`. An item holds, highest bits first, the codes at its place in as many equal parts of the
matrix, cut along the first axis: `packing` says how many; in 3 bits ten, of which the last can end early.
Layout: HQQLinear.state_dict of hqq.core.quantize, settings as tensors, which is what Transformers saves; and
hqq.core.bitpack. https://mobiusml.github.io/hqq_blog.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from suture.errors import FormatError
from suture.formats.dtypes import DTYPES, Array, from_float, to_float
from suture.formats.quantized.affine import BLOCK, Grid, blocks, fill
from suture.formats.quantized.base import FLOATS, Dense, Given, Read, Rows, Scheme, dense, malformed, part, whole
from suture.values import Json, Packed, TensorInfo


class _Packing(NamedTuple):
    """How the codes lie in an item."""

    dtype: str
    per_item: int
    bits: int  # between two codes of an item
    said: tuple[float, ...]  # what `nbits` can be


PACKINGS = {
    "8bit_u8": _Packing("U8", 1, 8, (8, 6, 5)),
    "4bit_u8": _Packing("U8", 2, 4, (4,)),
    "3bit_32": _Packing("I32", 10, 3, (3,)),
    "2bit_u8": _Packing("U8", 4, 2, (2, float(np.float32(1.58)))),
    "1bit_u8": _Packing("U8", 8, 1, (1,)),
}
_COMPUTED = {f"torch.{DTYPES[name].torch_name}": name for name in FLOATS}
_NEEDED = ("scale", "zero", "shape", "nbits", "group_size", "axis", "packing", "compute_dtype")
# What else the library stores of a layer, and what it must be where it changes the values.
_BESIDE: Mapping[str, int | None] = {
    "quant_scale": 0, "quant_zero": 0, "channel_wise": 1, "view_as_float": None, "unpack_view_dtype": None,
    "offload_meta": None, "encoded_state_dict": None, "stores_quant_config": None, "optimize": None, "round_zero": None,
}  # fmt: skip
_MAX_SETTING_BYTES = 64


def find(given: Given) -> Mapping[str, Dense]:
    """The weights that a W_q stands for."""
    found = {}
    for name, tensor in sorted(given.tensors.items()):
        module, separator, kind = name.rpartition(".")
        if separator and kind == "W_q":
            found[f"{module}.weight"] = _dense(module, tensor, given)
    return found


def _dense(module: str, codes: TensorInfo, given: Given) -> Dense:
    tensors = given.tensors
    for old in ("scale_q", "zero_q", "zero_scale"):
        if f"{module}.{old}" in tensors:
            _refuse(tensors[f"{module}.{old}"])
    if f"{module}.weight" in tensors:
        malformed(tensors[f"{module}.weight"], "it stands beside a W_q", "one of the two")
    parts = {"codes": codes} | {name: part(tensors, f"{module}.{name}", codes) for name in _NEEDED}
    parts |= {name: tensors[f"{module}.{name}"] for name in _BESIDE if f"{module}.{name}" in tensors}
    for name, wanted in _BESIDE.items():
        if wanted is not None and name in parts and _numbers(parts[name], given.read) != [wanted]:
            _refuse(parts[name])
    shape = _numbers(parts["shape"], given.read)
    if len(shape) != 2 or min(shape) < 1:
        malformed(parts["shape"], f"shape {shape}", "the two sizes of the dense weight")
    said = _text(parts["compute_dtype"], given.read)
    if said not in _COMPUTED:
        malformed(parts["compute_dtype"], said, ", ".join(_COMPUTED))
    dtype = _COMPUTED[said]
    settings = _layout(parts, math.prod(shape), dtype, given.read)
    return dense(f"{module}.weight", dtype, (shape[0], shape[1]), Packed(SCHEME.name, parts, settings), "codes")


def _layout(parts: Mapping[str, TensorInfo], n_values: int, dtype: str, read: Read) -> dict[str, Any]:
    """Packing and axis, and the size of the matrix that the codes are before the reshape."""
    name, codes = _text(parts["packing"], read), parts["codes"]
    packing = PACKINGS.get(name)
    bits, axis, size = _bits(parts["nbits"], read), _number(parts["axis"], read), _number(parts["group_size"], read)
    if packing is None or bits not in packing.said:
        malformed(parts["packing"], f"{name} of {bits} bits", ", ".join(PACKINGS))
    if axis not in (0, 1):
        malformed(parts["axis"], f"axis {axis}", "0 or 1")
    if size < 1 or n_values % size:
        malformed(parts["group_size"], f"groups of {size:,}", f"a divisor of {n_values:,}")
    n_groups = n_values // size
    n_rows, n_cols = (n_groups, size) if axis else (size, n_groups)
    n_items = -(-n_rows // packing.per_item) * n_cols
    is_viewed = "view_as_float" in parts and _number(parts["view_as_float"], read) == 1
    stored = dtype if is_viewed else packing.dtype
    n_bytes = n_items * DTYPES[packing.dtype].bits // 8
    if codes.dtype != stored or codes.n_bytes != n_bytes or (n_rows % packing.per_item and packing.per_item != 10):
        malformed(codes, f"{codes.n_bytes:,} bytes of {codes.dtype}", f"{n_bytes:,} of {stored}, in full items")
    for key in ("scale", "zero"):
        if parts[key].dtype != dtype or parts[key].n_values != n_groups:
            found = f"{parts[key].n_values:,} values of {parts[key].dtype}"
            malformed(parts[key], found, f"{n_groups:,} of {dtype}, which is compute_dtype")
    return {"packing": name, "axis": axis, "rows": n_rows, "cols": n_cols}


def _numbers(stored: TensorInfo, read: Read) -> list[int]:
    """A setting that is stored as a tensor."""
    if stored.dtype not in ("U8", "I32", "I64") or stored.n_bytes > _MAX_SETTING_BYTES:
        malformed(stored, f"{stored.n_bytes:,} bytes of {stored.dtype}", "a setting of the layer, as whole numbers")
    return [int(x) for x in whole(stored, read).reshape(-1)]


def _number(stored: TensorInfo, read: Read) -> int:
    numbers = _numbers(stored, read)
    if len(numbers) != 1:
        malformed(stored, f"{len(numbers)} numbers", "one")
    return numbers[0]


def _bits(stored: TensorInfo, read: Read) -> float:
    """`nbits`, which is a float where it is 1.58."""
    if stored.dtype == "F32" and stored.n_values == 1:
        return float(whole(stored, read).reshape(-1)[0])
    return _number(stored, read)


def _text(stored: TensorInfo, read: Read) -> str:
    """A setting that is stored as the codes of its letters."""
    if stored.dtype != "U8":
        malformed(stored, f"values of {stored.dtype}", "letters, as U8")
    return "".join(map(chr, _numbers(stored, read)))


def _refuse(stored: TensorInfo) -> NoReturn:
    raise FormatError(
        "a layer whose scales are quantised themselves, or shared by all of its values",
        where=f"{stored.file}: {stored.name}",
        expected="a float scale and zero for each group, as hqq 0.2 stores them",
        do="Quantise the model again with hqq 0.2, or use the unquantised weights.",
    )


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense weight."""
    parts, n_in = packed.parts, info.shape[1]
    n_cols, axis = int(packed.settings["cols"]), packed.settings["axis"]
    scales, zeros = (to_float(whole(parts[key], read), info.dtype).reshape(-1, 1) for key in ("scale", "zero"))
    grid = Grid(1 << PACKINGS[packed.settings["packing"]].bits, scales, zeros, _formula)

    def rows(start: int, stop: int) -> Array:
        first, last = start * n_in, stop * n_in
        out = np.empty(last - first, DTYPES[info.dtype].storage)
        for (top, left), shape in _tiles(first, last, n_cols):
            begin = top * n_cols + left
            x = np.empty(shape, out.dtype)
            codes = _codes(packed, begin, begin + x.size, read).reshape(shape)
            if axis:
                fill(x, codes, grid, top, info.dtype)
            else:
                here = slice(left, left + shape[1])
                with np.errstate(over="ignore", invalid="ignore"):
                    x[...] = _formula(codes.astype(np.float32), zeros[here].T, scales[here].T, info.dtype)
            low, high = max(begin, first), min(begin + x.size, last)
            out[low - first : high - first] = x.reshape(-1)[low - begin : high - begin]
        return out.reshape(stop - start, n_in)

    return rows


def _tiles(first: int, last: int, n_cols: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Place and size of tiles of the codes' matrix in which these values are: rows of it, or pieces of a long one."""
    top, bottom = first // n_cols, -(-last // n_cols)
    if n_cols <= BLOCK:
        for start, stop in blocks(top, bottom, BLOCK // n_cols):
            yield (start, 0), (stop - start, n_cols)
    else:
        for row in range(top, bottom):
            before = row * n_cols
            for start, stop in blocks(max(first - before, 0), min(last - before, n_cols), BLOCK):
                yield (row, start), (1, stop - start)


def _codes(packed: Packed, start: int, stop: int, read: Read) -> Array:
    """Codes start:stop of the matrix, flat, uint8."""
    stored, packing = packed.parts["codes"], PACKINGS[packed.settings["packing"]]
    kind, mask = np.dtype("u1" if packing.dtype == "U8" else "<u4"), (1 << packing.bits) - 1
    n_items = stored.n_bytes // kind.itemsize
    codes = np.empty(stop - start, np.uint8)
    for i in range(start // n_items, -(-stop // n_items)):
        first, last = max(start, i * n_items), min(stop, (i + 1) * n_items)
        items = np.empty(last - first, kind)
        read(stored, (first - i * n_items) * kind.itemsize, items)
        items >>= kind.type(packing.bits * (packing.per_item - 1 - i))
        items &= kind.type(mask)
        codes[first - start : last - start] = items
    return codes


def _formula(q: Array, z: Array, s: Array, dtype: str) -> Array:
    """(q − z) · s, rounded twice."""
    x = to_float(from_float(q - z, dtype), dtype)
    x *= s
    return from_float(x, dtype)


def words(settings: Json) -> str:
    """Such as "HQQ 4 bits, groups of 64, axis 1"."""
    config = settings.get("quant_config")
    said = config.get("weight_quant_params") if isinstance(config, Mapping) else None
    if not isinstance(said, Mapping):
        return "HQQ"
    return f"HQQ {said.get('nbits')} bits, groups of {said.get('group_size')}, axis {said.get('axis')}"


SCHEME = Scheme("hqq", find, open_rows, words)
