"""FP8 as DeepSeek, Qwen and Transformers store it: 8-bit floats, and a scale for each block or each weight.

    W[i, j] = code[i, j] · weight_scale_inv[i // m, j // n]           m, n = weight_block_size

In float32, rounded once to the model's dtype. Experts can be one tensor, (experts, out, in), with scales (experts, …).
The scales are F32, BF16 or powers of two (E8M0), and stand beside the weight as `weight_scale_inv`, `weight_scale`,
`scale` or `qscale_weight`. Expert weights can also be E2M1, two in a byte (I8). Blocks are smaller than the config says
where the grid of the scales is finer, and divides the weight evenly.
Layout: transformers.integrations.finegrained_fp8; https://arxiv.org/abs/2412.19437, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from suture.errors import FormatError
from suture.formats.quantized import scaled_blocks, scaled_blocks_encode
from suture.formats.quantized.base import Dense, Given, Scheme, Tensors, dense, malformed, settings_of
from suture.formats.quantized.small_floats import FLOAT8, SCALES
from suture.values import Json, Packed, TensorInfo

_BLOCK = (128, 128)  # where the config does not tell
_KEY = "weight_block_size"
_SCALE_FORMATS = ("float", "ue8m0")
# Beside a weight `X.weight`, and beside an expert parameter `X`.
_OF_WEIGHT = ("{0}.weight_scale_inv", "{0}.weight_scale", "{0}.scale", "{0}.qscale_weight")
_OF_PARAMETER = ("{0}_scale_inv", "{0}_scale")
_INVERSE = "_scale_inv"
_MORE = ("activation_scale", "input_scale", "output_scale", "qscale_act", "k_scale", "v_scale")


def find(given: Given) -> Mapping[str, Dense]:
    """All weights of 8-bit floats; those of 4-bit floats beside which scales stand."""
    block = _block(given.settings)
    scale_format = settings_of(given.settings, "scale_fmt", str, "float")
    if scale_format not in _SCALE_FORMATS:
        raise _wrong(f"scale_fmt is {scale_format!r}", " or ".join(_SCALE_FORMATS))
    found = {}
    for name, weight in sorted(given.tensors.items()):
        if name.endswith(_INVERSE) and name.removesuffix(_INVERSE) not in given.tensors:
            malformed(weight, f"there is no {name.removesuffix(_INVERSE)}", "the weight that these scales are of")
        if weight.dtype in FLOAT8 or weight.dtype == "I8":
            scales = _scales(weight, given.tensors)
            if scales is not None:
                found[name] = _dense(weight, scales, block, given)
    return found


def _dense(weight: TensorInfo, scales: TensorInfo, block: tuple[int, int] | None, given: Given) -> Dense:
    if len(weight.shape) < 2 or not weight.n_values:
        malformed(weight, f"{weight.dtype} {list(weight.shape)}", "a matrix, or a matrix for each expert")
    shape = weight.shape if weight.dtype in FLOAT8 else (*weight.shape[:-1], 2 * weight.shape[-1])
    owner, separator = _owner(weight.name)
    parts = {"codes": weight, "scales": scales} | {
        kind: given.tensors[name] for kind in _MORE if (name := f"{owner}{separator}{kind}") in given.tensors
    }
    if scales.dtype not in SCALES:
        malformed(scales, f"scales of {scales.dtype}", ", ".join(SCALES))
    packed = Packed(SCHEME.name, parts, {"block": _fitting(shape, scales, block)})
    return dense(weight.name, given.dtype, shape, packed, "codes")


def _owner(name: str) -> tuple[str, str]:
    """What the names of the scales begin with: the module of a weight, or an expert parameter itself."""
    return (name.removesuffix(".weight"), ".") if name.endswith(".weight") else (name, "_")


def _scales(weight: TensorInfo, tensors: Tensors) -> TensorInfo | None:
    owner, separator = _owner(weight.name)
    names = [pattern.format(owner) for pattern in (_OF_WEIGHT if separator == "." else _OF_PARAMETER)]
    present = [name for name in names if name in tensors]
    if len(present) > 1:
        malformed(weight, f"both {present[0]} and {present[1]} are there", "one tensor of scales")
    if not present and weight.dtype in FLOAT8:
        malformed(weight, f"there is no {names[0]}", "the scales of every quantised weight, in any of the files")
    return tensors[present[0]] if present else None


def _fitting(shape: tuple[int, ...], scales: TensorInfo, block: tuple[int, int] | None) -> tuple[int, int]:
    """The size of the blocks that the scales are of."""
    leading = math.prod(shape[:-2])
    if scales.n_values == 1 or scales.n_values == leading == scales.shape[0]:
        return shape[-2], shape[-1]
    if len(scales.shape) > 1 and math.prod(scales.shape[:-2]) == leading:
        said = block or (0, 0)
        m, n = (_size(shape[axis], scales.shape[axis], said[axis]) for axis in (-2, -1))
        if m and n:
            return m, n
    blocks = f"a scale for each {block[0]} × {block[1]} values" if block else "one scale a weight"
    malformed(scales, f"shape {list(scales.shape)} beside a weight of {list(shape)}", blocks)


def _size(n: int, n_blocks: int, said: int) -> int:
    """How many of n values go with each of so many scales; 0 where that does not fit what the config says."""
    if said and -(-n // said) == n_blocks:
        return min(n, said)
    size = n // n_blocks if n_blocks and n % n_blocks == 0 else 0
    return size if size and said % size == 0 else 0


def _block(settings: Json) -> tuple[int, int] | None:
    """weight_block_size; None for one scale a weight."""
    if settings.get(_KEY, _BLOCK) is None:
        return None
    sizes = settings_of(settings, _KEY, list, list(_BLOCK))
    if not isinstance(sizes, list) or [type(n) for n in sizes] != [int, int] or min(sizes) < 1:
        raise _wrong(f"{_KEY} is {sizes!r}", "two numbers of values")
    return sizes[0], sizes[1]


def _wrong(found: str, expected: str) -> FormatError:
    return FormatError(found, where="config.json: quantization_config", expected=expected)


def words(settings: Json) -> str:
    """Such as "FP8, blocks of 128 × 128"."""
    block = _block(settings)
    return "FP8, " + ("one scale a weight" if block is None else f"blocks of {block[0]} × {block[1]}")


SCHEME = Scheme("fp8", find, scaled_blocks.open_rows, words, scaled_blocks_encode.QUANTIZER)
