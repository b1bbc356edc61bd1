"""AWQ: codes of 4 bits in 32-bit words, a scale and a zero for each group of inputs, in one of three layouts.

    W[i, j] = (code[i, j] − zero[i, g(j)]) · scale[i, g(j)]             gemm, gemv
    W[i, j] = code[i, j] · scale[i, g(j)] + zeros[i, g(j)]              gemv_fast, rounded once; zeros = −zero · scale

    gemm        qweight (in, out / 8), qzeros (groups, out / 8), I32; scales (groups, out)
    gemv        qweight (out, in / 8), qzeros (out, k), I32; scales (out, 8 k), of which the first `groups` are used
    gemv_fast   qweight (out / 4, in), I16; qzeros and scales (8 k, out), floats

A word of gemm holds outputs 0 2 4 6 1 3 5 7, one of gemv inputs in order, lowest bits first. In gemv_fast four rows of
64 inputs are 64 words, and 32 inputs stand in the order of `FAST_ORDER`. Layout: awq.modules.linear of AutoAWQ, and
gptqmodel.nn_modules.qlinear; https://arxiv.org/abs/2306.00978.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from suture.errors import FormatError
from suture.formats.dtypes import SIXTEEN, Array, from_float, to_float
from suture.formats.quantized.affine import Grid, choice, decoded, difference, require, spread, transposed
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
    settings_of,
    some_rows,
    whole,
)  # fmt: skip
from suture.values import Json, Packed, TensorInfo

VERSIONS = ("gemm", "gemv", "gemv_fast")
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
FAST_ORDER = tuple(np.arange(32).reshape(4, 4, 2).transpose(1, 0, 2).reshape(4, 4, 2).transpose(0, 2, 1).ravel())
_WIDTHS = {64: 2, 32: 4, 16: 8}  # words of zeros that a kernel of gemv reads at once, by size of a group; else one
_SCALED = ("act", "gelu_impl")  # activations before which no other layer could take the scales


def find(given: Given) -> Mapping[str, Dense]:
    """The weights that a qweight stands for."""
    settings, found = given.settings, {}
    choice(settings, ("bits", "w_bit"), (4,), 4)
    version = str(choice(settings, ("version", "checkpoint_format", "format"), VERSIONS, "gemm"))
    size = settings_of(settings, "group_size", int, 0) or settings_of(settings, "q_group_size", int, 128)
    assert isinstance(size, int)
    for name, tensor in sorted(given.tensors.items()):
        module, separator, kind = name.rpartition(".")
        if separator and kind in ("qweight", "qzeros") and f"{module}.weight" not in found:
            found[f"{module}.weight"] = _dense(module, tensor, version, size, given)
        elif kind == "scales" and module.rpartition(".")[2] in _SCALED:
            raise FormatError(
                "scales of an activation",
                where=f"{tensor.file}: {name}",
                expected="scales of linear layers only; the dense model has no place for these",
                do="Use the unquantised weights of the model.",
            )
    return found


def _dense(module: str, tensor: TensorInfo, version: str, size: int, given: Given) -> Dense:
    qweight = part(given.tensors, f"{module}.qweight", tensor)
    parts = {"codes": qweight, "zeros": part(given.tensors, f"{module}.qzeros", qweight)}
    parts["scales"] = part(given.tensors, f"{module}.scales", qweight)
    if f"{module}.weight" in given.tensors:
        malformed(given.tensors[f"{module}.weight"], "it stands beside a qweight", "one of the two")
    require(qweight, ("I16" if version == "gemv_fast" else "I32",))
    require(parts["scales"], SIXTEEN if version == "gemv_fast" else FLOATS)
    n_out, n_in = _shape(parts, version)
    size = n_in if size == -1 else size
    if size < 1 or n_in % size or (version != "gemm" and size < 128 and size not in _WIDTHS):
        malformed(qweight, f"{n_in:,} inputs", f"groups of {size:,} of them, as config.json says")
    _require_shapes(parts, version, n_out, n_in, n_in // size)
    packed = Packed(SCHEME.name, parts, {"version": version, "groups": n_in // size})
    return dense(f"{module}.weight", parts["scales"].dtype, (n_out, n_in), packed, "codes")


def _shape(parts: Mapping[str, TensorInfo], version: str) -> tuple[int, int]:
    """Of the dense weight, (out, in), by its codes."""
    first, second = parts["codes"].shape
    if version == "gemm":
        return second * 8, first
    if version == "gemv":
        return first, second * 8
    if second % 64:
        malformed(parts["codes"], f"I16 {[first, second]}", "a multiple of 64 inputs")
    return first * 4, second


def _require_shapes(parts: Mapping[str, TensorInfo], version: str, n_out: int, n_in: int, n_groups: int) -> None:
    """A FormatError, unless zeros and scales fit the codes; gemv's are padded to what its kernel reads at a time."""
    zeros, scales = parts["zeros"], parts["scales"]
    if version == "gemm":
        require(zeros, ("I32",), (n_groups, n_out // 8))
        require(scales, FLOATS, (n_groups, n_out))
    else:
        at_once = _WIDTHS.get(n_in // n_groups, 1)
        width = -(-n_groups // (8 * at_once)) * at_once
        shape = (n_out, 8 * width) if version == "gemv" else (8 * width, n_out)
        require(scales, FLOATS, shape)
        if version == "gemv":
            require(zeros, ("I32",), (n_out, width))
        else:
            require(zeros, (scales.dtype,), shape)


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense weight. In gemm, where they are spread over all of the tensor, its words are kept."""
    version, n_groups = packed.settings["version"], int(packed.settings["groups"])
    codes, zeros = packed.parts["codes"], whole(packed.parts["zeros"], read)
    scales = to_float(whole(packed.parts["scales"], read), info.dtype)
    if version == "gemv":
        zeros = spread(zeros, 4)[:, :n_groups].astype(np.float32)
        return decoded(info, Grid(16, scales[:, :n_groups], zeros, difference), _gemv(codes, read))
    if version == "gemv_fast":
        zeros = to_float(zeros, info.dtype)
        grid = Grid(16, scales[:n_groups].T.copy(), zeros[:n_groups].T.copy(), _sum)
        return decoded(info, grid, _gemv_fast(codes, read))
    in_order = spread(zeros, 4).reshape(n_groups, -1, 8)[..., np.argsort(ORDER)].reshape(n_groups, -1)
    grid = Grid(16, scales.T.copy(), in_order.T.astype(np.float32, order="C"), difference)
    return decoded(info, grid, _gemm(codes, read))


def _gemm(stored: TensorInfo, read: Read) -> Callable[[int, int], Array]:
    words = transposed(stored, read)

    def codes(start: int, stop: int) -> Array:
        first, last = start // 8, -(-stop // 8)
        x = np.empty((last - first, 8, words.shape[1]), np.uint8)
        for i, output in enumerate(ORDER):
            x[:, output] = words[first:last] >> np.uint32(4 * i) & np.uint32(15)
        return x.reshape(-1, words.shape[1])[start - 8 * first : stop - 8 * first]

    return codes


def _gemv(stored: TensorInfo, read: Read) -> Callable[[int, int], Array]:
    return lambda start, stop: spread(some_rows(stored, start, stop, read), 4)


def _gemv_fast(stored: TensorInfo, read: Read) -> Callable[[int, int], Array]:
    back, n_in = np.argsort(FAST_ORDER), stored.shape[1]

    def codes(start: int, stop: int) -> Array:
        first, last = start // 4, -(-stop // 4)
        tiles = spread(some_rows(stored, first, last, read), 4).reshape(last - first, n_in // 64, 4, 64)
        x = tiles.transpose(0, 2, 1, 3).reshape(-1, 32)[:, back].reshape(-1, n_in)
        return x[start - 4 * first : stop - 4 * first]

    return codes


def _sum(q: Array, z: Array, s: Array, dtype: str) -> Array:
    """q · s + z, as one fused operation: of the files that the library writes, both are exact here."""
    x = q * s
    x += z
    return from_float(x, dtype)


def words(settings: Json) -> str:
    """Such as "AWQ 4 bits, groups of 128, gemm"."""
    return f"AWQ 4 bits, groups of {settings.get('group_size', 128)}, {settings.get('version', 'gemm')}"


SCHEME = Scheme("awq", find, open_rows, words)
