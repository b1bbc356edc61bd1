"""FBGEMM's FP8: 8-bit floats (E4M3), and a scale for each output of a layer.

    W[i, j] = code[i, j] · weight_scale[i]                  a linear layer, (out, in)
    W[e, i, j] = code[e, i, j] · proj_scale[e, j]           the experts of Llama 4, (experts, in, out)

In float32, rounded once to bfloat16, the only dtype that the library computes in. `input_scale_ub` bounds the scales of
activations. Layout: transformers.integrations.fbgemm_fp8; https://github.com/pytorch/FBGEMM.
"""

from __future__ import annotations

from collections.abc import Mapping

from suture.formats.quantized import scaled_blocks, scaled_blocks_encode
from suture.formats.quantized.base import FLOATS, Dense, Given, Scheme, dense, malformed, part
from suture.formats.quantized.small_floats import require_scales
from suture.values import Json, Packed, TensorInfo

_DTYPE = "BF16"
_BOUND = "input_scale_ub"


def find(given: Given) -> Mapping[str, Dense]:
    """All weights of 8-bit floats."""
    return {name: _dense(tensor, given) for name, tensor in sorted(given.tensors.items()) if tensor.dtype == "F8_E4M3"}


def _dense(weight: TensorInfo, given: Given) -> Dense:
    scales = part(given.tensors, f"{weight.name}_scale", weight)
    if len(weight.shape) not in (2, 3) or not weight.n_values:
        malformed(weight, f"shape {list(weight.shape)}", "a matrix, or a matrix for each expert")
    n_rows, cols = weight.shape[-2:]
    if len(weight.shape) == 2:
        require_scales(scales, FLOATS, (n_rows, 1), (n_rows,))
        block = 1, cols
    else:
        # Transformers writes the scales of gate_up_proj as a row, those of down_proj as a column; both are per output.
        require_scales(scales, FLOATS, (weight.shape[0], 1, cols), (weight.shape[0], cols, 1))
        block = n_rows, 1
    parts = {"codes": weight, "scales": scales}
    bound = f"{weight.name.rpartition('.')[0]}.{_BOUND}"
    if bound in given.tensors:
        parts["bound"] = given.tensors[bound]
    return dense(weight.name, _DTYPE, weight.shape, Packed(SCHEME.name, parts, {"block": block}), "codes")


def words(settings: Json) -> str:
    """FBGEMM FP8, a scale for each output."""
    return "FBGEMM FP8, a scale for each output"


SCHEME = Scheme("fbgemm_fp8", find, scaled_blocks.open_rows, words, scaled_blocks_encode.QUANTIZER)
