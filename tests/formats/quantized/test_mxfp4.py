"""MXFP4 experts, bit for bit what Transformers loads as the dense parameter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from packed_cases import assert_same, bytes_read, decoded, names_of_parts, random_bytes, stored, uniform
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from suture.errors import FormatError
from suture.formats.dtypes import DTYPES
from suture.formats.quantized.mxfp4 import SCHEME

P = "m.experts.gate_up_proj"
B, S = f"{P}_blocks", f"{P}_scales"


def scales(*shape, low=110, high=135):
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("shape", [(3, 10, 2), (1, 1, 1), (2, 33, 5), (1, 3000, 8)])
def test_random_experts(tmp_path, shape, dtype):
    tensors = {B: random_bytes(*shape, 16), S: scales(*shape)}
    ours = decoded(tmp_path, SCHEME, tensors, dtype=dtype)[P]
    output = getattr(torch, DTYPES[dtype].torch_name)
    assert_same(ours, convert_moe_packed_tensors(tensors[B], tensors[S], dtype=output))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_byte_with_every_scale(tmp_path, dtype):
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 255, 16, 16)
    powers = torch.arange(255, dtype=torch.uint8).reshape(1, 255, 1).expand(1, 255, 16)
    ours = decoded(tmp_path, SCHEME, {B: blocks, S: powers}, dtype=dtype)[P]
    output = getattr(torch, DTYPES[dtype].torch_name)
    assert_same(ours, convert_moe_packed_tensors(blocks, powers, dtype=output))


def test_a_scale_of_255_is_no_number(tmp_path):
    powers = torch.tensor([[[127, 255]]], dtype=torch.uint8)
    ours = decoded(tmp_path, SCHEME, {B: random_bytes(1, 1, 2, 16), S: powers})[P]
    assert torch.equal(ours.isnan()[0, :, 0], torch.arange(64) >= 32)


def test_the_published_layout(tmp_path):
    """Code 2 · i of a byte in its lower half; the dense parameter is (experts, in, out)."""
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    codes = np.random.default_rng(4).integers(0, 16, (2, 3, 64))
    powers = np.random.default_rng(5).integers(120, 130, (2, 3, 2))
    packed = (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8).reshape(2, 3, 2, 16)
    tensors = {B: torch.from_numpy(packed), S: torch.from_numpy(powers.astype(np.uint8))}
    ours = decoded(tmp_path, SCHEME, tensors)[P]
    assert ours.shape == (2, 64, 3)
    for e, i, o in np.ndindex(2, 64, 3):
        code = int(codes[e, o, i])
        value = (-1) ** (code >> 3) * values[code & 7]
        assert ours[e, i, o].item() == value * 2.0 ** (int(powers[e, o, i // 32]) - 127)


def test_scales_of_their_own_type_in_another_file(tmp_path):
    tensors = {B: random_bytes(2, 4, 2, 16), S: scales(2, 4, 2)}
    expected = convert_moe_packed_tensors(tensors[B], tensors[S])
    tensors[S] = tensors[S].view(torch.float8_e8m0fnu)
    assert_same(decoded(tmp_path, SCHEME, tensors, apart=[S])[P], expected)


def test_parts(tmp_path):
    tensors = {B: random_bytes(2, 4, 2, 16), S: scales(2, 4, 2)}
    plain = {"m.experts.gate_up_proj_bias": uniform(2, 4), "m.self_attn.sinks": uniform(4), "m.n_blocks": uniform(2)}
    assert names_of_parts(tmp_path, SCHEME, tensors | plain) == {P: {B, S}}


def test_an_expert_is_read_once(tmp_path):
    tensors = {B: random_bytes(3, 4, 2, 16), S: scales(3, 4, 2)}
    assert bytes_read(tmp_path, SCHEME, tensors, P, 70, 71) == 4 * 2 * 17
    assert bytes_read(tmp_path, SCHEME, tensors, P, 64, 128, step=5) == 4 * 2 * 17
    assert bytes_read(tmp_path, SCHEME, tensors, P, 60, 70) == 2 * 4 * 2 * 17


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({B: random_bytes(2, 4, 2, 16)}, f"no {S}"),
        ({B: random_bytes(2, 4, 2, 8), S: scales(2, 4, 2)}, B),
        ({B: random_bytes(4, 2, 16), S: scales(4, 2)}, B),
        ({B: random_bytes(0, 4, 2, 16), S: scales(0, 4, 2)}, B),
        ({B: random_bytes(2, 4, 2, 16).char(), S: scales(2, 4, 2)}, B),
        ({B: random_bytes(2, 4, 2, 16), S: scales(2, 2, 4)}, S),
        ({B: random_bytes(2, 4, 2, 16), S: scales(2, 4)}, S),
        ({B: random_bytes(2, 4, 2, 16), S: uniform(2, 4, 2)}, S),
    ],
)
def test_what_does_not_fit(tmp_path, tensors, told):
    with stored(tmp_path, tensors) as given, pytest.raises(FormatError, match=rf"{told}(?!_)"):
        SCHEME.find(given)


def test_words():
    assert SCHEME.words({}) == "MXFP4"


def test_a_model_as_transformers_loads_it(tmp_path):
    """On a CPU Transformers loads gpt-oss as the dense model."""
    config = GptOssConfig(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_local_experts=3,
        num_experts_per_tok=1,
        vocab_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        layer_types=["full_attention"],
        dtype="bfloat16",
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "dense")
    tensors, packed = {}, {}
    for name, values in load_file(tmp_path / "dense" / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, n_in, n_out = values.shape
            packed[f"{name}_blocks"] = random_bytes(experts, n_out, n_in // 32, 16)
            packed[f"{name}_scales"] = scales(experts, n_out, n_in // 32)
        else:
            tensors[name] = values
    folder = tmp_path / "mxfp4"
    folder.mkdir()
    save_file(tensors | packed, folder / "model.safetensors", {"format": "pt"})
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "quantization_config": settings}))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()

    ours = decoded(tmp_path / "ours", SCHEME, tensors | packed, settings)
    assert len(ours) == 2
    for name, values in ours.items():
        assert_same(values, theirs[name])
