"""FBGEMM's FP8: laid out by Transformers' own modules, multiplied by torch's own scaled product."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from packed_cases import assert_same, decoded, names_of_parts, random_bytes, stored, uniform
from transformers.integrations import fbgemm_fp8

from suture.errors import FormatError
from suture.formats.quantized.fbgemm_fp8 import SCHEME

W, S, BOUND = "m.q_proj.weight", "m.q_proj.weight_scale", "m.q_proj.input_scale_ub"
E4M3 = torch.float8_e4m3fn


def codes(*shape):
    return random_bytes(*shape).view(E4M3)


def per_row(values, *_, **__):
    """What FBGEMM's kernel does, which needs a GPU: the largest value of a row becomes 448."""
    scales = values.float().abs().amax(dim=-1) / 448
    return (values.float() / scales[:, None]).to(E4M3), scales


def quantize(module, name, values, monkeypatch):
    """What Transformers stores for a parameter of one of its modules."""
    monkeypatch.setattr(fbgemm_fp8, "quantize_fp8_per_row", per_row, raising=False)
    model = torch.nn.Module()
    model.m = module
    written = fbgemm_fp8.FbgemmFp8Quantize(None).convert({f"m.{name}": [values]}, model=model)
    for key, tensor in written.items():
        assert tensor.shape == module.get_parameter(key.removeprefix("m.")).shape
    return {key: tensor.detach() for key, tensor in written.items()}


def test_a_linear_layer(tmp_path, monkeypatch):
    values = torch.randn(48, 80, generator=torch.Generator().manual_seed(5))
    written = quantize(fbgemm_fp8.FbgemmFp8Linear(80, 48, bias=False), "weight", values, monkeypatch)
    ours = decoded(tmp_path, SCHEME, written, dtype="F16")["m.weight"]  # the library has no other dtype than bfloat16
    assert_same(ours, (written["m.weight"].float() * written["m.weight_scale"]).bfloat16())
    assert torch.allclose(ours.float(), values, rtol=1 / 14, atol=1e-5)


def test_torch_multiplies_with_the_same_weight(tmp_path):
    """The layer's product, of inputs that each pick one column of the weight."""
    weight, scales = torch.randn(48, 64, generator=torch.Generator().manual_seed(4)).to(E4M3), uniform(48, 1)
    ours = decoded(tmp_path, SCHEME, {W: weight, S: scales})[W] + 0  # a sum has no minus zero
    inputs = {"scale_a": torch.ones(64, 1), "scale_b": scales.t(), "out_dtype": torch.bfloat16}
    assert_same(ours, torch._scaled_mm(torch.eye(64).to(E4M3), weight.t(), **inputs).t())


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
@pytest.mark.parametrize("sizes", [(32, 16), (32, 32)], ids=["oblong", "square"])
def test_experts_of_llama_4(tmp_path, monkeypatch, name, sizes):
    """Stored (experts, in, out); the scales are of outputs, whichever axis of theirs is the long one."""
    hidden, intermediate = sizes
    config = SimpleNamespace(num_local_experts=3, intermediate_size=intermediate, hidden_size=hidden, hidden_act="silu")
    experts = fbgemm_fp8.FbgemmFp8Llama4TextExperts(config)
    values = torch.randn(experts.get_parameter(name).shape, generator=torch.Generator().manual_seed(6))
    written = quantize(experts, name, values, monkeypatch)
    ours = decoded(tmp_path, SCHEME, written)[f"m.{name}"]
    for e in range(3):
        # As the forward pass multiplies one expert: rows of the transposed weight, each with its scale.
        rows = written[f"m.{name}"][e].T.float() * written[f"m.{name}_scale"][e].reshape(-1, 1)
        assert_same(ours[e], rows.T.bfloat16())
    assert torch.allclose(ours.float(), values, rtol=1 / 14, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (40, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_code(tmp_path, shape, dtype):
    weight, scales = codes(*shape), uniform(shape[0], 1).to(dtype)
    ours = decoded(tmp_path, SCHEME, {W: weight, S: scales})[W]
    # A product of 4 and 24 bits is exact in float64.
    assert_same(ours, (weight.double() * scales.double()).float().bfloat16())


def test_parts(tmp_path):
    tensors = {W: codes(4, 8), S: uniform(4, 1), BOUND: uniform(1)}
    plain = {"m.norm.weight": uniform(4), "m.lm_head.weight": uniform(4, 4).bfloat16()}
    assert names_of_parts(tmp_path, SCHEME, tensors | plain) == {W: set(tensors)}


def test_scales_of_another_file(tmp_path):
    weight, scales = codes(4, 8), uniform(4)
    ours = decoded(tmp_path, SCHEME, {W: weight, S: scales}, apart=[S])[W]
    assert_same(ours, (weight.float() * scales[:, None]).bfloat16())


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({W: codes(4, 8)}, f"no {S}"),
        ({"m.experts.down_proj": codes(2, 4, 8)}, "no m.experts.down_proj_scale"),
        ({W: codes(4), S: uniform(4, 1)}, W),
        ({W: codes(4, 0), S: uniform(4, 1)}, W),
        ({W: codes(2, 2, 4, 8), S: uniform(4, 1)}, W),
        ({W: codes(4, 8), S: uniform(8, 1)}, S),
        ({W: codes(4, 8), S: uniform(1, 4)}, S),
        ({W: codes(4, 8), S: uniform()}, S),
        ({W: codes(4, 8), S: uniform(4, 1).double()}, S),
        ({W: codes(4, 8), S: codes(4, 1)}, S),
        ({W: codes(2, 4, 8), S: uniform(2, 4, 1)}, S),
    ],
)
def test_what_does_not_fit(tmp_path, tensors, told):
    with stored(tmp_path, tensors) as given, pytest.raises(FormatError, match=rf"{told}(?!_)"):
        SCHEME.find(given)


def test_words():
    assert SCHEME.words({"activation_scale_ub": 1200.0}) == "FBGEMM FP8, a scale for each output"
