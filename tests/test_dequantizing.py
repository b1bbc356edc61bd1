"""Bases quantised by the real library: dequantised, and merged onto, as Transformers and PEFT compute them."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import VOCAB, make_base, trained
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig
from zoo_adapters import compare

from suture import dequantize, merge, verify
from suture.cli.app import app
from suture.errors import InputError, OutputExists
from suture.verification.logits import LogitsSettings

KINDS = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
FEED = torch.arange(5, 45).reshape(2, 20)


def load(folder: Path, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)


@pytest.fixture(scope="module", params=sorted(KINDS))
def quantized(request, tmp_path_factory):
    """A quantised base, an adapter for it, and the dense base and the tuned model as the libraries have them."""
    folder = tmp_path_factory.mktemp(request.param)
    # As wide as a block: the library's kernel for AVX-512 decodes blocks that cross rows with the wrong scales.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCAB, num_hidden_layers=2, **sizes)).save_pretrained(
        folder / "plain"
    )
    load(folder / "plain", quantization_config=KINDS[request.param]).save_pretrained(folder / "base")
    model = load(folder / "base")
    config = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    trained(get_peft_model(model, config)).save_pretrained(folder / "adapter")
    dense = load(folder / "base").dequantize().float()
    return folder, dense


def test_a_dequantised_folder_is_what_transformers_dequantises_to(quantized, tmp_path):
    folder, dense = quantized
    receipt = dequantize(folder / "base", tmp_path / "out")
    assert receipt.adapter == ""
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    model, told = load(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    expected = dense.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_merge_is_the_dequantised_base_with_its_adapter(quantized, tmp_path):
    folder, dense = quantized
    receipt = merge(folder / "base", folder / "adapter", tmp_path / "out")
    assert any("weights are dequantised (bitsandbytes" in note for note in receipt.notes)
    with torch.no_grad():
        tuned = PeftModel.from_pretrained(dense, folder / "adapter").eval()(FEED).logits
        merged = load(tmp_path / "out")(FEED).logits
    assert compare(tuned, merged).same
    settings = LogitsSettings(n_prompts=2)
    assert verify(folder / "base", folder / "adapter", tmp_path / "out", full=True, logits=settings).ok


def test_what_was_never_quantised_keeps_its_bytes(quantized, tmp_path):
    folder, _ = quantized
    dequantize(folder / "base", tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (folder / "base", tmp_path / "out"))
    kept = [name for name in after if before[name].dtype == after[name].dtype]
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= set(kept)
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_a_wrong_value_is_found(quantized, tmp_path):
    folder, _ = quantized
    merge(folder / "base", folder / "adapter", tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-3] ^= 0x10
    weights.write_bytes(data)
    assert not verify(folder / "base", folder / "adapter", tmp_path / "out", full=True).ok


def test_a_plain_model_is_told_apart(tmp_path):
    base = make_base(tmp_path / "base")
    with pytest.raises(InputError, match="the weights are not quantised"):
        dequantize(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(quantized, tmp_path):
    folder, _ = quantized
    run = CliRunner().invoke(app, ["dequantize", str(folder / "base"), "-o", str(tmp_path / "out"), "--dtype", "f32"])
    assert run.exit_code == 0, run.output
    assert "dequantised" in run.output
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}
    with pytest.raises(OutputExists):
        dequantize(folder / "base", tmp_path / "out")
