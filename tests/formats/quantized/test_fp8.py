"""FP8 with scales of blocks, bit for bit what Transformers decodes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from packed_cases import assert_same, bytes_read, decoded, names_of_parts, random_bytes, stored, uniform
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, LlamaConfig, Qwen3MoeConfig
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize, _dequantize_fp8_weight

from suture.errors import FormatError
from suture.formats.quantized.fp8 import SCHEME

W, S = "m.q_proj.weight", "m.q_proj.weight_scale_inv"
E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
THEIRS = Fp8Dequantize(None)


def quantize(values, **settings):
    """What Transformers writes for a weight: values and scales."""
    quantizer = SimpleNamespace(quantization_config=FineGrainedFP8Config(**settings))
    written = Fp8Quantize(quantizer).convert({W: values})
    return written[W], written[S]


def codes(*shape):
    return random_bytes(*shape).view(E4M3)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * 0.02


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"scale_fmt": "ue8m0"}, {"weight_block_size": [64, 32]}, {"weight_block_size": None}],
    ids=["blocks", "powers", "smaller", "tensor"],
)
def test_what_transformers_writes(tmp_path, settings, dtype):
    weight, scales = quantize(normal(256, 384), **settings)
    ours = decoded(tmp_path, SCHEME, {W: weight, S: scales}, settings, dtype)
    output = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    assert_same(ours[W], THEIRS._dequantize_one(weight, scales, output))


@pytest.mark.parametrize(
    ("weight", "scales", "settings"),
    [
        (codes(256, 256), uniform(2, 2), {}),
        (codes(256, 256), uniform(2, 2).bfloat16(), {}),
        (codes(256, 256), uniform(2, 2).half(), {}),
        (codes(256, 256), uniform(2, 2, high=1e38), {}),
        (codes(256, 256), uniform(2, 2, low=0, high=1e-38), {}),
        (codes(4, 256), random_bytes(4, 8).clamp(0, 254), {"weight_block_size": [1, 32], "scale_fmt": "ue8m0"}),
        (codes(4, 256), random_bytes(4, 8).view(E8M0), {"weight_block_size": [1, 32], "scale_fmt": "ue8m0"}),
        (codes(256, 256), uniform(256, 8), {}),
        (codes(7, 5), uniform(), {"weight_block_size": None}),
        (codes(7, 5), uniform(1).bfloat16(), {}),
        (codes(1, 1), uniform(1, 1), {}),
        (codes(3, 128, 256), uniform(3, 1, 2), {}),
        (codes(3, 64, 256), uniform(3, 2, 2), {}),
        (codes(3, 7, 5), uniform(3), {"weight_block_size": None}),
        (codes(3, 7, 5), uniform(3, 1, 1), {"weight_block_size": None}),
        (codes(3, 8, 5), uniform(3, 2, 1), {"weight_block_size": None}),
        (codes(3, 7, 5), uniform(), {}),
        (random_bytes(8, 256).view(torch.int8), uniform(8, 16), {}),
        (random_bytes(3, 8, 256).view(torch.int8), random_bytes(3, 8, 16).view(E8M0), {"expert_dtype": "fp4"}),
        (random_bytes(256, 256).view(torch.float8_e5m2), uniform(2, 2), {}),
    ],
)
def test_any_codes_and_scales(tmp_path, weight, scales, settings):
    """Infinite and missing values too; scales that Transformers takes for others are told apart below."""
    ours = decoded(tmp_path, SCHEME, {W: weight, S: scales}, settings)
    assert_same(ours[W], THEIRS._dequantize_one(weight, scales, torch.bfloat16))


@pytest.mark.parametrize("shape", [(192, 320), (129, 127), (300, 128), (700, 513), (3, 192, 130)])
def test_smaller_blocks_at_the_edges(tmp_path, shape):
    """As Transformers' layers read them; its decoder makes all blocks of a weight equal, or fails."""
    down, across = -(-shape[-2] // 128), -(-shape[-1] // 128)
    weight, scales = codes(*shape), uniform(*shape[:-2], down, across)
    ours = decoded(tmp_path, SCHEME, {W: weight, S: scales}, {"weight_block_size": [128, 128]})[W]
    assert_same(ours, _dequantize_fp8_weight(weight, scales, [128, 128], torch.float32).bfloat16())
    last = weight[..., -1, -1].float() * scales[..., (shape[-2] - 1) // 128, (shape[-1] - 1) // 128]
    assert_same(ours[..., -1, -1], last.bfloat16())


@pytest.mark.parametrize("dtype", [torch.uint8, E8M0])
def test_a_power_of_255_is_no_number(tmp_path, dtype):
    """Transformers takes it for infinity where it is stored as U8."""
    settings = {"weight_block_size": [1, 32], "scale_fmt": "ue8m0"}
    scales = torch.tensor([[255, 127]], dtype=torch.uint8).view(dtype)
    ours = decoded(tmp_path, SCHEME, {W: torch.ones(1, 64).to(E4M3), S: scales}, settings)[W]
    assert torch.equal(ours.isnan()[0], torch.arange(64) < 32)
    assert (ours[0, 32:] == 1).all()


@pytest.mark.parametrize(
    ("weight", "scales"),
    [
        (W, "m.q_proj.weight_scale_inv"),
        (W, "m.q_proj.weight_scale"),
        (W, "m.q_proj.scale"),
        (W, "m.q_proj.qscale_weight"),
        ("m.experts.gate_up_proj", "m.experts.gate_up_proj_scale_inv"),
        ("m.experts.w13_weight", "m.experts.w13_weight_scale"),
    ],
)
def test_names_of_scales(tmp_path, weight, scales):
    owner = weight.removesuffix("weight") if weight.endswith(".weight") else f"{weight}_"
    more = {f"{owner}activation_scale": uniform(2), f"{owner}input_scale": uniform()}
    plain = {"m.norm.weight": uniform(4), "m.k_norm.scale": uniform(4), "m.mask.weight": random_bytes(2, 2).char()}
    tensors = {weight: codes(2, 128, 128), scales: uniform(2, 1, 1)} | more
    assert names_of_parts(tmp_path, SCHEME, tensors | plain) == {weight: set(tensors)}


def test_scales_of_another_file(tmp_path):
    weight, scales = codes(256, 128), uniform(2, 1)
    ours = decoded(tmp_path, SCHEME, {W: weight, S: scales}, apart=[S])
    assert_same(ours[W], THEIRS._dequantize_one(weight, scales, torch.bfloat16))


def test_no_more_is_read_than_asked_for(tmp_path):
    tensors = {W: codes(300, 256), S: uniform(3, 2)}
    assert bytes_read(tmp_path, SCHEME, tensors, W, 100, 200) == 4 * 6 + 100 * 256


@pytest.mark.parametrize(
    ("tensors", "settings", "told"),
    [
        ({W: codes(4, 4)}, {}, f"no {S}"),
        ({"m.experts.down_proj": codes(2, 4, 4)}, {}, "no m.experts.down_proj_scale_inv"),
        ({W: codes(4), S: uniform(1)}, {}, W),
        ({W: codes(0, 4), S: uniform(0, 1)}, {}, W),
        ({W: codes(256, 128), S: uniform(1, 2)}, {}, S),
        ({W: codes(256, 128), S: uniform(2)}, {}, S),
        ({W: codes(256, 128), S: uniform(2, 1, 1)}, {}, S),
        ({W: codes(256, 128), S: uniform(2, 0)}, {}, S),
        ({W: codes(256, 256), S: uniform(256, 1)}, {}, S),
        ({W: codes(256, 128), S: uniform(128, 64)}, {"weight_block_size": [3, 3]}, S),
        ({W: codes(7, 128), S: uniform(2, 1)}, {"weight_block_size": None}, S),
        ({W: codes(3, 128, 128), S: uniform(2, 1, 1)}, {}, S),
        ({W: codes(3, 128, 128), S: uniform(1, 3)}, {}, S),
        ({W: codes(256, 128), S: random_bytes(2, 1).char()}, {}, S),
        ({W: codes(256, 128), S: codes(2, 1)}, {}, S),
        ({W: codes(256, 128), S: uniform(2, 1), "m.q_proj.scale": uniform(2, 1)}, {}, "m.q_proj.scale"),
        ({W: codes(4, 4), S: uniform(1)}, {"weight_block_size": "128"}, "weight_block_size"),
        ({W: codes(4, 4), S: uniform(1)}, {"weight_block_size": [128]}, "weight_block_size"),
        ({W: codes(4, 4), S: uniform(1)}, {"weight_block_size": [0, 128]}, "weight_block_size"),
        ({W: codes(4, 4), S: uniform(1)}, {"weight_block_size": [True, 128]}, "weight_block_size"),
        ({W: codes(4, 4), S: uniform(1)}, {"scale_fmt": "ue4m3"}, "scale_fmt"),
        ({W: codes(4, 4), S: uniform(1)}, {"scale_fmt": 8}, "scale_fmt"),
    ],
)
def test_what_does_not_fit(tmp_path, tensors, settings, told):
    with stored(tmp_path, tensors, settings) as given, pytest.raises(FormatError, match=rf"{told}(?!_)"):
        SCHEME.find(given)


def test_blocks_larger_than_any_number(tmp_path):
    weight, scales = codes(2, 4, 64), uniform(2, 1, 2)
    ours = decoded(tmp_path, SCHEME, {W: weight, S: scales}, {"weight_block_size": [10**30, 32]})
    assert_same(ours[W], THEIRS._dequantize_one(weight, scales, torch.bfloat16))


def test_words():
    assert SCHEME.words({}) == "FP8, blocks of 128 × 128"
    assert SCHEME.words({"weight_block_size": None}) == "FP8, one scale a weight"


SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 32, "num_attention_heads": 2, "head_dim": 32}
LLAMA = LlamaConfig(**SIZES, intermediate_size=96, num_key_value_heads=1, dtype="bfloat16")
MOE = Qwen3MoeConfig(
    **SIZES, intermediate_size=96, moe_intermediate_size=64, num_experts=3, num_key_value_heads=1, dtype="bfloat16"
)


@pytest.mark.parametrize("config", [LLAMA, MOE], ids=["llama", "qwen3-moe"])
def test_a_model_as_transformers_loads_it(tmp_path, config):
    """On a CPU Transformers loads FP8 as the dense model; a layer of experts as one tensor."""
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head", "gate"]}
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "dense")
    from safetensors.torch import load_file

    tensors = {}
    for name, values in load_file(tmp_path / "dense" / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            tensors[name], tensors[f"{name}_scale_inv"] = quantize(values, weight_block_size=[32, 32])
        else:
            tensors[name] = values
    folder = tmp_path / "fp8"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "quantization_config": settings}))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()

    ours = decoded(tmp_path / "ours", SCHEME, tensors, settings)
    assert len(ours) == sum(name.endswith("_scale_inv") for name in tensors)
    experts = "model.layers.0.mlp.experts"
    fused = {name for name in ours if name.startswith(experts)}
    for name in ours.keys() - fused:
        assert_same(ours[name], theirs[name])
    if fused:
        each = [[ours[f"{experts}.{e}.{kind}_proj.weight"] for kind in ("gate", "up", "down")] for e in range(3)]
        assert_same(torch.stack([torch.cat(one[:2]) for one in each]), theirs[f"{experts}.gate_up_proj"])
        assert_same(torch.stack([one[2] for one in each]), theirs[f"{experts}.down_proj"])
