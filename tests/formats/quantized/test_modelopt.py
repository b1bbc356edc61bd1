"""ModelOpt's FP8 and NVFP4: by the published layout, and by the library itself where it is installed."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from packed_cases import assert_same, bytes_read, decoded, names_of_parts, random_bytes, stored, uniform
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GptOssConfig, Llama4TextConfig, LlamaConfig, Qwen3MoeConfig

from suture.errors import FormatError
from suture.formats.quantized.modelopt import SCHEME

M = "m.q_proj"
W, S, S2 = f"{M}.weight", f"{M}.weight_scale", f"{M}.weight_scale_2"
P = "m.experts.down_proj"
E4M3 = torch.float8_e4m3fn
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
HALF = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E2M1 = torch.tensor(HALF + [0.0] + [-value for value in HALF[1:]])


def codes(*shape):
    return random_bytes(*shape).view(E4M3)


def pack(nibbles):
    """Two of a row in a byte, the first one in the lower half."""
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4


def dequantized(nibbles, scales, second, group=16):
    """float32, as the library's own decoder: the values times the product of both scales."""
    second = second.reshape(-1, 1, 1) if second.ndim else second
    return E2M1[nibbles.long()] * (scales.float() * second).repeat_interleave(group, -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 16), (600, 512), (1, 6000), (3, 5, 48)])
@pytest.mark.parametrize("second", [uniform(), uniform(1), torch.tensor(1e38), torch.tensor(1e-40)])
def test_nvfp4(tmp_path, shape, second, dtype):
    """All codes with all scales, which can be negative, and infinite products."""
    nibbles, scales = random_bytes(*shape) & 15, codes(*shape[:-1], shape[-1] // 16)
    tensors = {W: pack(nibbles), S: scales, S2: second}
    ours = decoded(tmp_path, SCHEME, tensors, NVFP4, dtype)[W]
    assert_same(ours, dequantized(nibbles, scales, second.reshape(())).to(DTYPES[dtype]))


def test_nvfp4_with_inputs_of_fp8(tmp_path):
    nibbles, scales = random_bytes(9, 96) & 15, codes(9, 3)
    tensors = {W: pack(nibbles), S: scales, S2: uniform()}
    ours = decoded(tmp_path, SCHEME, tensors, {"quant_algo": "W4A8_NVFP4_FP8"})[W]
    assert_same(ours, dequantized(nibbles, scales, uniform(), 32).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("second", [uniform(), uniform(3), uniform(3, 1, 1)])
@pytest.mark.parametrize("sizes", [(32, 48), (32, 16), (64, 7), (4096, 80)])
def test_nvfp4_of_experts_along_their_inputs(tmp_path, sizes, second, dtype):
    """Stored (experts, in / 2, out); it was packed as (experts, out, in / 2)."""
    n_in, n_out = sizes
    nibbles, scales = random_bytes(3, n_out, n_in) & 15, codes(3, n_out, n_in // 16)
    tensors = {P: pack(nibbles).mT, f"{P}_weight_scale": scales.view(torch.uint8).mT.contiguous().view(E4M3)}
    ours = decoded(tmp_path, SCHEME, tensors | {f"{P}_weight_scale_2": second}, NVFP4, dtype)[P]
    assert_same(ours, dequantized(nibbles, scales, second).mT.to(DTYPES[dtype]))


@pytest.mark.parametrize(
    ("weight", "scales", "expanded"),
    [
        (codes(7, 5), uniform(), uniform().reshape(1, 1)),
        (codes(7, 5), uniform(1), uniform(1, 1)),
        (codes(7, 5), uniform(7), uniform(7, 1)),
        (codes(7, 5), uniform(7, 1), uniform(7, 1)),
        (codes(7, 5), uniform(7).half(), uniform(7, 1).half()),
        (codes(3, 7, 5), uniform(), uniform().reshape(1, 1)),
        (codes(3, 7, 5), uniform(3), uniform(3, 1, 1)),
        (codes(3, 7, 5), uniform(3, 1), uniform(3, 1, 1)),
        (codes(3, 7, 5), uniform(3, 1, 1), uniform(3, 1, 1)),
        (codes(32, 4096), uniform(1, 1, 32, 1), uniform(1, 32).repeat_interleave(128, 1)),
        (codes(200, 300), uniform(2, 3), uniform(2, 3).repeat_interleave(128, 0).repeat_interleave(128, 1)),
        (codes(200, 64), uniform(2, 1, 1, 1), uniform(2, 1).repeat_interleave(128, 0)),
        (codes(3, 7, 5), uniform(3, 1, 1, 1, 1), uniform(3, 1, 1)),
    ],
)
def test_fp8(tmp_path, weight, scales, expanded):
    ours = decoded(tmp_path, SCHEME, {W: weight, S: scales}, {"quant_algo": "FP8"})[W]
    expanded = expanded.float()[..., : weight.shape[-2], : weight.shape[-1]]
    assert_same(ours, (weight.float() * expanded).bfloat16())


@pytest.mark.parametrize("shape", [(5, 64), (3, 5, 64)])
def test_mxfp8(tmp_path, shape):
    weight, scales = codes(*shape), random_bytes(*shape[:-1], 2).clamp(0, 254)
    ours = decoded(tmp_path, SCHEME, {W: weight, S: scales}, {"quant_algo": "MXFP8"})[W]
    assert_same(ours, (weight.float() * (scales.float() - 127).exp2().repeat_interleave(32, -1)).bfloat16())


def test_parts(tmp_path):
    """Two schemes in one checkpoint; scales of the key-value cache belong to their projection."""
    four = {W: random_bytes(4, 8), S: codes(4, 1), S2: uniform(), f"{M}.input_scale": uniform()}
    eight = {"m.k_proj.weight": codes(4, 8), "m.k_proj.weight_scale": uniform(), "m.k_proj.k_scale": uniform()}
    experts = {P: codes(2, 4, 8), f"{P}_weight_scale": uniform(), f"{P}_input_scale": uniform()}
    plain = {"lm_head.weight": uniform(4, 4).bfloat16(), "m.mask": random_bytes(4), f"{P}_bias": uniform(2, 8)}
    found = names_of_parts(tmp_path, SCHEME, four | eight | experts | plain, {"quant_algo": "MIXED_PRECISION"})
    assert found == {W: set(four), "m.k_proj.weight": set(eight), P: set(experts)}


def test_scales_of_another_file(tmp_path):
    nibbles, scales = random_bytes(4, 32) & 15, codes(4, 2)
    ours = decoded(tmp_path, SCHEME, {W: pack(nibbles), S: scales, S2: uniform()}, apart=[S, S2])[W]
    assert_same(ours, dequantized(nibbles, scales, uniform()).bfloat16())


def test_no_more_is_read_than_asked_for(tmp_path):
    tensors = {W: random_bytes(400, 64), S: codes(400, 8), S2: uniform()}
    tensors |= {P: random_bytes(2, 160, 48), f"{P}_weight_scale": codes(2, 20, 48), f"{P}_weight_scale_2": uniform()}
    assert bytes_read(tmp_path, SCHEME, tensors, W, 100, 110) == 4 + 10 * (64 + 8)
    assert bytes_read(tmp_path, SCHEME, tensors, P, 330, 340) == 4 + 48 * (8 + 1) * 2  # two groups of rows


BYTES, FOUR = random_bytes(4, 16), {S: codes(4, 2), S2: uniform()}


@pytest.mark.parametrize(
    ("tensors", "settings", "told"),
    [
        ({W: BYTES}, {}, f"no {S}"),
        ({W: codes(4, 16)}, {}, f"no {S}"),
        ({W: BYTES, S: codes(4, 2)}, {}, f"no {S2}"),
        ({P: random_bytes(2, 8, 16), f"{P}_weight_scale": codes(2, 1, 16)}, {}, f"no {P}_weight_scale_2"),
        ({W: BYTES, **FOUR, S: codes(2, 4)}, {}, S),
        ({W: BYTES, **FOUR, S: codes(4, 1)}, NVFP4, S),
        ({W: BYTES, **FOUR}, {"quant_algo": "W4A8_NVFP4_FP8"}, S),
        ({W: BYTES, **FOUR}, {"quant_algo": "FP8"}, W),
        ({W: BYTES, **FOUR, S: uniform(4, 2)}, {}, S),
        ({W: BYTES, **FOUR, S2: uniform(4)}, {}, S2),
        ({W: BYTES, **FOUR, S2: codes(1)}, {}, S2),
        ({W: random_bytes(4, 9), **FOUR}, {}, W),
        ({W: random_bytes(16), **FOUR}, {}, W),
        ({W: random_bytes(0, 16), **FOUR, S: codes(0, 2)}, {}, W),
        ({W: BYTES, **FOUR, f"{M}.pre_quant_scale": uniform(32)}, {}, f"{M}.pre_quant_scale"),
        ({W: BYTES, **FOUR, f"{M}.svdquant_lora_a": uniform(4, 32)}, {}, f"{M}.svdquant_lora_a"),
        ({W: codes(4, 16), S: uniform(5)}, {}, S),
        ({W: codes(4, 16), S: uniform(1, 4)}, {}, S),
        ({W: codes(4, 16), S: uniform(4).double()}, {}, S),
        ({W: codes(4, 48), S: random_bytes(4, 1)}, {}, "48 columns"),
        ({W: codes(4, 32), S: random_bytes(4, 2)}, {}, S),
        ({W: codes(3, 4, 16), S: uniform(3, 4)}, {}, S),
        ({W: codes(3, 4, 16), S: uniform(4)}, {}, S),
        ({W: codes(256, 256), S: uniform(2, 1, 1, 2)}, {}, S),
        ({W: codes(16), S: uniform()}, {}, W),
        ({}, {"quant_algo": "W4A16_AWQ"}, "W4A16_AWQ"),
        ({}, {"quantization": {"quant_algo": "NVFP4_AWQ"}}, "NVFP4_AWQ"),
        ({}, {"quant_algo": 8}, "quant_algo"),
        ({}, {"quantization": "NVFP4"}, "quantization"),
    ],
)
def test_what_does_not_fit(tmp_path, tensors, settings, told):
    with stored(tmp_path, tensors, settings) as given, pytest.raises(FormatError, match=rf"{told}(?!_)"):
        SCHEME.find(given)


def test_words():
    assert SCHEME.words(NVFP4) == "ModelOpt NVFP4"
    assert SCHEME.words({"quantization": {"quant_algo": "fp8_pb_wo"}}) == "ModelOpt FP8_PB_WO"
    assert SCHEME.words({"quant_algo": None}) == "ModelOpt"


def test_values_of_compressed_tensors(tmp_path):
    """Another library's reading of the bytes; it knows a minus zero."""
    helpers = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
    packed = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    tensors = {W: packed, S: torch.ones(4, 8).to(E4M3), S2: torch.tensor(1.0)}
    ours = decoded(tmp_path, SCHEME, tensors)[W]
    assert torch.equal(ours, helpers.unpack_fp4_from_uint8(packed, 4, 128, torch.bfloat16))


@pytest.fixture(scope="module")
def modelopt():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("modelopt.torch.quantization")
        pytest.importorskip("modelopt.torch.export")
    return quantization


SIZES = {"num_hidden_layers": 1, "vocab_size": 64, "num_attention_heads": 2, "head_dim": 32, "num_key_value_heads": 1}
EXPERTS = {"num_experts_per_tok": 3, "intermediate_size": 192}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, hidden_size=160, intermediate_size=320),
    "qwen3-moe": Qwen3MoeConfig(**SIZES, **EXPERTS, hidden_size=160, moe_intermediate_size=192, num_experts=3),
    "gpt-oss": GptOssConfig(**SIZES, **EXPERTS, hidden_size=160, num_local_experts=3, layer_types=["full_attention"]),
    "llama4": Llama4TextConfig(
        **SIZES, **EXPERTS, hidden_size=160, num_local_experts=3, intermediate_size_mlp=64, interleave_moe_layer_step=1
    ),
}
ALGORITHMS = [
    "FP8_DEFAULT_CFG",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "MXFP8_DEFAULT_CFG",
    "NVFP4_DEFAULT_CFG",
    "W4A8_NVFP4_FP8_CFG",
]


# ModelOpt's exporter fails for blocks of experts, or scales them with those of other blocks.
CASES = [(family, name) for family in CONFIGS for name in ALGORITHMS if family == "llama" or "2D" not in name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "name"), CASES)
def test_what_modelopt_exports(tmp_path, modelopt, family, name):
    from modelopt.torch.export import export_hf_checkpoint

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=torch.bfloat16)
    model.config.architectures = [type(model).__name__]
    modelopt.quantize(model, getattr(modelopt, name), lambda model: model(torch.arange(16)[None]))
    export_hf_checkpoint(model, export_dir=tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]
    ours = decoded(tmp_path / "ours", SCHEME, tensors, settings)
    assert len(ours) == sum(key.endswith("weight_scale") for key in tensors)
    for key, values in ours.items():
        assert_same(values, theirs(tensors, key, values.shape))


def theirs(tensors, key, shape):
    """By the library's own decoders, in float32."""
    from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP8QTensor, NVFP4QTensor

    begin = key.removesuffix("weight") if key.endswith(".weight") else f"{key}_"
    weight, scales = tensors[key], tensors[f"{begin}weight_scale"]
    if weight.dtype == torch.uint8:
        turned = weight.shape[-1] == shape[-1]
        if turned:
            weight, scales, shape = weight.mT, scales.view(torch.uint8).mT.view(E4M3), (shape[0], shape[2], shape[1])
        packed = NVFP4QTensor(shape, torch.bfloat16, weight.contiguous())
        group, second = {-1: shape[-1] // scales.shape[-1]}, tensors[f"{begin}weight_scale_2"]
        values = packed.dequantize(scale=scales, double_scale=second, block_sizes=group)
        return values.mT if turned else values
    if scales.dtype == torch.uint8:
        return MXFP8QTensor(shape, torch.bfloat16, weight).dequantize(scale=scales)
    if scales.ndim > 3:
        scales = scales[..., 0, :, 0]
        values = FP8QTensor(shape, torch.float32, weight).dequantize(scale=scales, block_sizes={-1: 128, -2: 128})
        return values.bfloat16()
    scales = scales.reshape(-1, *[1] * (len(shape) - 1)) if scales.ndim else scales
    return FP8QTensor(shape, torch.float32, weight).dequantize(scale=scales).bfloat16()
