"""NVIDIA ModelOpt: FP8, with one scale a weight, an output or a block, and NVFP4, with two levels of scales.

    FP8    W[i, j] = code[i, j] · weight_scale                                   or [i], or [i // 128, j // 128]
    MXFP8  W[i, j] = code[i, j] · 2^(weight_scale[i, j // 32] - 127)
    NVFP4  W[i, j] = code[i, j] · (weight_scale[i, j // 16] · weight_scale_2)          with FP8 inputs [i, j // 32]

In float32, rounded once to the model's dtype. FP8 codes are E4M3. NVFP4 codes are E2M1, two in a byte, the first one in
the lower half; minus zero counts as zero; its weight_scale is E4M3. The experts of Llama 4 and gpt-oss, (experts, in,
out), are packed along `in`. Layout: modelopt.torch.export; https://nvidia.github.io/Model-Optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from suture.errors import FormatError
from suture.formats.dtypes import DTYPES, Array
from suture.formats.quantized import modelopt_encode, scaled_blocks
from suture.formats.quantized.base import FLOATS, Dense, Given, Read, Rows, Scheme, dense, malformed, part, settings_of
from suture.formats.quantized.small_floats import (
    fill_rows,
    look_up,
    require_scales,
    scaled_nibbles,
    scales_of,
    values_of,
)
from suture.values import Json, Packed, TensorInfo

# quant_algo → how many values of an NVFP4 weight can go with a scale.
_ALGORITHMS: Mapping[str, tuple[int, ...]] = {
    "FP8": (),
    "FP8_PER_CHANNEL_PER_TOKEN": (),
    "FP8_PB_WO": (),
    "MXFP8": (),
    "NVFP4": (16,),
    "W4A16_NVFP4": (16,),
    "W4A8_NVFP4_FP8": (32,),
    "MIXED_PRECISION": (16, 32),
    "": (16, 32),
}
_BLOCK, _MX = 128, 32  # values that go with a scale: of blocks, of MXFP8
_MORE = ("input_scale", "output_scale", "k_scale", "v_scale", "k_bias", "v_bias")
# Beside a weight these make it another one.
_FACTORS = ("pre_quant_scale", "svdquant_lora_a", "svdquant_lora_b", "weight_zero_point")
_VALUES = 1 << 18  # decoded at a time


def find(given: Given) -> Mapping[str, Dense]:
    """All weights of 8-bit floats, and those of bytes beside which scales stand."""
    algorithm = _algorithm(given.settings)
    if algorithm not in _ALGORITHMS:
        raise FormatError(
            f"quant_algo is {algorithm!r}",
            where="config.json: quantization_config",
            expected=", ".join(name for name in _ALGORITHMS if name),
            do="Use the unquantised weights of the model.",
        )
    found = {}
    for name, weight in sorted(given.tensors.items()):
        packed = weight.dtype == "U8" and (name.endswith(".weight") or f"{name}_weight_scale" in given.tensors)
        if packed or (weight.dtype == "F8_E4M3" and not name.endswith("weight_scale")):
            found[name] = _dense(weight, given, _ALGORITHMS[algorithm])
    return found


def _dense(weight: TensorInfo, given: Given, groups: tuple[int, ...]) -> Dense:
    begin = weight.name.removesuffix("weight") if weight.name.endswith(".weight") else f"{weight.name}_"
    scales = part(given.tensors, f"{begin}weight_scale", weight)
    if len(weight.shape) not in (2, 3) or not weight.n_values:
        malformed(weight, f"{weight.dtype} {list(weight.shape)}", "a matrix, or a matrix for each expert")
    for kind in _FACTORS:
        if f"{begin}{kind}" in given.tensors:
            malformed(weight, f"{begin}{kind} is there", "weights that only scales belong to")
    parts = {"codes": weight, "scales": scales}
    parts |= {kind: given.tensors[name] for kind in _MORE if (name := f"{begin}{kind}") in given.tensors}
    if weight.dtype == "U8":
        parts["scales_2"] = second = part(given.tensors, f"{begin}weight_scale_2", weight)
        require_scales(second, FLOATS, (), (1,), *_per_expert(weight))
        shape, group = _unpacked(weight, scales, groups)
        return dense(weight.name, given.dtype, shape, Packed(SCHEME.name, parts, {"group": group}), "codes")
    packed = Packed(SCHEME.name, parts, {"block": _block(weight, scales)})
    return dense(weight.name, given.dtype, weight.shape, packed, "codes")


def _algorithm(settings: Json) -> str:
    inner = settings_of(settings, "quantization", dict, {})
    assert isinstance(inner, dict)
    said = {**inner, **settings}
    return str(settings_of(said, "quant_algo", str, "")).upper() if said.get("quant_algo") is not None else ""


def _block(weight: TensorInfo, scales: TensorInfo) -> tuple[int, int]:
    """The size of the blocks of an FP8 weight, from the shape of its scales."""
    *leading, n_rows, cols = weight.shape
    if scales.dtype == "U8":
        if cols % _MX:
            malformed(weight, f"{cols} columns, with scales of bytes", f"a scale for each {_MX}")
        require_scales(scales, ("U8",), (*leading, n_rows, cols // _MX))
        return 1, _MX
    if scales.n_values == 1 or scales.shape in _per_expert(weight):
        require_scales(scales, FLOATS, scales.shape)
        return n_rows, cols
    rows = [] if leading else [(n_rows,), (n_rows, 1)]
    down, across = scaled_blocks.grid(weight.shape, (_BLOCK, _BLOCK))
    blocks = [] if leading else [(down, across), (down, 1, across, 1)]
    require_scales(scales, FLOATS, (), *rows, *blocks)
    return (1, cols) if scales.shape in rows else (min(_BLOCK, n_rows), min(_BLOCK, cols))


def _per_expert(weight: TensorInfo) -> list[tuple[int, ...]]:
    """The shapes of one scale for each expert, where there are any."""
    return [(*weight.shape[:-2], *(1,) * n_axes) for n_axes in range(5)] if len(weight.shape) > 2 else []


def _unpacked(weight: TensorInfo, scales: TensorInfo, groups: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The shape of a dense weight that is stored as NVFP4, and how many of its values go with a scale.

    Two values of a row are packed; where the scales are those of columns, as of an expert, two values of a column.
    """
    *leading, n_rows, n_cols = weight.shape
    shapes = {}
    for group in groups:
        if 2 * n_cols % group == 0:
            shapes[*leading, n_rows, 2 * n_cols // group] = (*leading, n_rows, 2 * n_cols), group
        if leading and 2 * n_rows % group == 0:
            shapes[*leading, 2 * n_rows // group, n_cols] = (*leading, 2 * n_rows, n_cols), group
    if not shapes:
        malformed(weight, f"U8 {list(weight.shape)}", "8-bit floats, or bytes of 2 values, a scale for every 16 or 32")
    require_scales(scales, ("F8_E4M3",), *shapes)
    return shapes[scales.shape]


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense weight."""
    if packed.parts["codes"].dtype != "U8":
        return scaled_blocks.open_rows(info, packed, read)
    codes, scales, (n_rows, cols) = packed.parts["codes"], packed.parts["scales"], info.shape[-2:]
    second = scales_of(packed.parts["scales_2"], read).reshape(-1)
    fill = _fill_along_rows if codes.shape[-1] == cols else _fill_along_cols
    stored = codes, scales, int(packed.settings["group"]), read
    storage, step = DTYPES[info.dtype].storage, max(_VALUES // cols, 1)

    @lru_cache(maxsize=2)
    def table(e: int) -> Array:
        # Code 8, minus zero, counts as zero; a code is multiplied with the product of both scales.
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            products = values_of("F8_E4M3") * second[e]
        return scaled_nibbles(values_of("E2M1") + np.float32(0), products, info.dtype)

    def rows(start: int, stop: int) -> Array:
        out = np.empty((stop - start, cols), storage)
        begin = start
        while begin < stop:
            e = begin // n_rows
            end = min(stop, begin + step, (e + 1) * n_rows)
            fill(out[begin - start : end - start], begin, table(e if len(second) > 1 else 0), stored)
            begin = end
        return out

    return rows


_Stored: TypeAlias = tuple[TensorInfo, TensorInfo, int, Read]  # codes, scales, values that go with a scale


def _fill_along_cols(out: Array, begin: int, table: Array, stored: _Stored) -> None:
    """Rows from `begin` on; two values of a row lie in a byte."""
    codes, scales, group, read = stored
    index = _bytes(scales, begin, begin + len(out), read).astype(np.uint16)[:, :, None] << 8
    index = index | _bytes(codes, begin, begin + len(out), read).reshape(*index.shape[:2], group // 2)
    out[...] = look_up(table, index, out.dtype).reshape(out.shape)


def _fill_along_rows(out: Array, begin: int, table: Array, stored: _Stored) -> None:
    """Rows from `begin` on, of one expert; two values of a column lie in a byte."""
    codes, scales, group, read = stored
    first, last = begin // group, -(-(begin + len(out)) // group)
    packed = _bytes(codes, first * group // 2, last * group // 2, read)
    shifted = _bytes(scales, first, last, read).astype(np.uint16) << 8
    fill_rows(out, begin - first * group, packed, shifted, table)


def _bytes(info: TensorInfo, start: int, stop: int, read: Read) -> Array:
    """Rows of a stored tensor of bytes, read as a matrix."""
    stored = np.empty((stop - start, info.shape[-1]), np.uint8)
    read(info, start * info.shape[-1], stored)
    return stored


def words(settings: Json) -> str:
    """Such as "ModelOpt NVFP4"."""
    return f"ModelOpt {_algorithm(settings)}".rstrip()


SCHEME = Scheme("modelopt", find, open_rows, words, modelopt_encode.QUANTIZER)
