"""A215: how far the weights that training saw are from the 16-bit ones."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from click.testing import CliRunner
from rule_cases import findings
from safetensors.torch import load_file

from suture import Options
from suture.cli.app import app

ASKED = Options(onto="dequantized", trained_on="nf4")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, quiet_torch):
    """A base in bf16 and an adapter."""
    folder = tmp_path_factory.mktemp("apart")
    model = tiny.make_model().to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    tiny.trained(tiny.wrapped(model)).save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def test_the_typical_layer_is_told(pair):
    [finding] = findings(*pair, "A215", ASKED)
    assert finding.severity == "info"
    assert "in 14 layers" in finding.found
    assert "times as far as the adapter moves them" in finding.found


def test_nothing_is_told_of_the_weights_as_they_are(pair):
    assert not findings(*pair, "A215")


def test_every_layer_is_in_the_table(pair):
    line = ["check", *map(str, pair), "--deep", "--json", "--onto", "dequantized", "--trained-on", "nf4"]
    layers = {layer["tensor"]: layer for layer in json.loads(CliRunner().invoke(app, line).stdout)["layers"]}
    assert len(layers) == 14
    name = "model.layers.0.self_attn.q_proj.weight"
    plain = load_file(pair[0] / "model.safetensors")[name]
    codes, state = quantize_4bit(plain.T.contiguous().T, blocksize=64, quant_type="nf4")
    assert layers[name]["base"] == pytest.approx(plain.double().norm().item())
    # The library's kernel for AVX-512 decodes blocks that cross rows with the wrong scales; in one row none do.
    state.shape = torch.Size((1, plain.numel()))
    dequantized = dequantize_4bit(codes, state).reshape(plain.shape)
    assert layers[name]["quantized"] == pytest.approx((dequantized.double() - plain.double()).norm().item())
