"""W707: quantised by the config, and by the files."""

from __future__ import annotations

import numpy as np
import pytest
from model_cases import copied, edit, found, only, reweigh
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

MODULE = "model.layers.0.self_attn.q_proj"
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def nf4(tensors):
    """What bitsandbytes leaves of a linear layer."""
    weight = tensors.pop(f"{MODULE}.weight")
    tensors[f"{MODULE}.weight"] = np.zeros((weight.size // 2, 1), np.uint8)
    tensors[f"{MODULE}.weight.absmax"] = np.ones(weight.size // 64, np.float32)
    tensors[f"{MODULE}.weight.quant_map"] = np.ones(16, np.float32)
    tensors[f"{MODULE}.weight.quant_state.bitsandbytes__nf4"] = np.zeros(80, np.uint8)


def gptq(tensors):
    weight = tensors.pop(f"{MODULE}.weight")
    tensors[f"{MODULE}.qweight"] = np.zeros((weight.shape[1] // 8, weight.shape[0]), np.int32)
    tensors[f"{MODULE}.qzeros"] = np.zeros((1, weight.shape[0] // 8), np.int32)
    tensors[f"{MODULE}.scales"] = np.ones((1, weight.shape[0]), np.float16)


def fp8(tensors):
    shape = tensors[f"{MODULE}.weight"].shape
    tensors[f"{MODULE}.weight"] = np.zeros(shape, np.int8)
    tensors[f"{MODULE}.weight_scale"] = np.ones(shape[0], np.float32)


@pytest.fixture
def folder(base_of, tmp_path):
    return copied(base_of("mistral"), tmp_path / "model")


def say(folder, **config):
    edit(folder / "config.json", lambda c: c.update(quantization_config=config))


@pytest.mark.parametrize("level", ["", "text_config"])
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8", "mxfp4", "compressed-tensors"])
def test_plain_weights_and_a_config_that_stayed(folder, base_of, tmp_path, level, method):
    if level:
        folder = copied(base_of("gemma3-image"), tmp_path / "image")
        edit(folder / "config.json", lambda c: c[level].update(quantization_config={"quant_method": method}))
    else:
        say(folder, quant_method=method)
    (finding,) = found(folder, "W707")
    assert finding.severity == "error"
    assert finding.where == f"config.json: {level + '.' if level else ''}quantization_config"


@pytest.mark.parametrize("packed", [nf4, gptq, fp8])
def test_packed_weights_and_a_config_that_is_silent(folder, packed):
    finding = only(reweigh(folder, packed), "W707")
    assert MODULE in finding.where
    assert finding.severity == "error"


@pytest.mark.parametrize("file", ["hf_quant_config.json", "quantize_config.json", "quanto_qmap.json"])
def test_a_description_that_stayed_beside_plain_weights(folder, file):
    assert not found(folder)
    edit(folder / file, lambda said: said.update(quantization={"quant_algo": "FP8"}))
    assert only(folder, "W707").where == file


@pytest.mark.parametrize("packed", [gptq, fp8])
def test_a_description_of_packed_weights(folder, packed):
    file = {gptq: "quantize_config.json", fp8: "hf_quant_config.json"}[packed]
    edit(folder / file, lambda said: said.update(bits=4))
    assert not found(reweigh(folder, packed), "W707")


def test_another_method(folder):
    say(folder, quant_method="gptq")
    assert "bitsandbytes" in only(reweigh(folder, nf4), "W707").found


def test_scales_that_are_gone(folder):
    def lose(tensors):
        nf4(tensors)
        for name in [n for n in tensors if ".weight." in n]:
            del tensors[name]

    say(folder, **NF4)
    assert any("scale" in f.found for f in found(reweigh(folder, lose), "W707"))


@pytest.mark.parametrize(("packed", "method"), [(nf4, "bitsandbytes"), (gptq, "awq"), (fp8, "compressed-tensors")])
def test_packed_weights_and_their_config(folder, packed, method):
    say(folder, quant_method=method)
    assert not found(reweigh(folder, packed))


@pytest.mark.parametrize("settings", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}])
def test_what_bitsandbytes_saves(base_of, tmp_path, settings):
    config = BitsAndBytesConfig(**settings)
    AutoModelForCausalLM.from_pretrained(base_of("llama-tied"), quantization_config=config).save_pretrained(tmp_path)
    assert not found(tmp_path)
    edit(tmp_path / "config.json", lambda c: c.pop("quantization_config"))
    assert found(tmp_path, "W707")
    assert not found(tmp_path, "W704"), "one defect, one rule"


def test_a_method_that_is_not_known(folder):
    say(folder, quant_method="of tomorrow")
    assert not found(folder, "W707")
