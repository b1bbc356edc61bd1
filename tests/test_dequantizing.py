"""Bases quantised by the real library: dequantised, and merged onto, as Transformers and PEFT compute them."""

import json
import shutil
from pathlib import Path

import gguf_cases
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import VOCAB, make_base, trained
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig
from zoo_adapters import compare

from suture import Options, check, dequantize, merge, verify
from suture.cli.app import app
from suture.errors import InputError, OutputExists, UsageError
from suture.verification.logits import LogitsSettings

KINDS = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
# As wide as a block: the library's kernel for AVX-512 decodes blocks that cross rows with the wrong scales.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
FEED = torch.arange(5, 45).reshape(2, 20)


def load(folder: Path, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)


@pytest.fixture(scope="module", params=sorted(KINDS))
def quantized(request, tmp_path_factory):
    """A quantised base, an adapter for it, and the dense base and the tuned model as the libraries have them."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCAB, num_hidden_layers=2, **SIZES)).save_pretrained(
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


@pytest.fixture(scope="module")
def qlora(tmp_path_factory):
    """A plain base in bf16, the same quantised to NF4 (nested) and saved, and an adapter that was trained on that."""
    folder = tmp_path_factory.mktemp("qlora")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCAB, num_hidden_layers=2, **SIZES)).to(
        torch.bfloat16
    ).save_pretrained(folder / "org" / "plain")
    model = AutoModelForCausalLM.from_pretrained(folder / "org" / "plain", quantization_config=KINDS["nf4"])
    model.save_pretrained(folder / "nf4")
    tuned = trained(get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")))
    tuned.save_pretrained(folder / "adapter")
    return folder


def test_onto_dequantized_is_the_merge_onto_the_quantised_model(qlora, tmp_path):
    options = Options(onto="dequantized", trained_on="nf4-nested")
    merge(qlora / "org" / "plain", qlora / "adapter", tmp_path / "simulated", options=options)
    merge(qlora / "nf4", qlora / "adapter", tmp_path / "stored")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("simulated", "stored"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert verify(qlora / "org" / "plain", qlora / "adapter", tmp_path / "simulated", options=options, full=True).ok
    other = verify(qlora / "org" / "plain", qlora / "adapter", tmp_path / "simulated", options=Options(), full=True)
    assert not other.ok


def test_an_adapter_alone_is_checked_with_the_quantised_base_that_it_names(qlora, tmp_path):
    shutil.copytree(qlora / "adapter", tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    settings = {**json.loads(config.read_text()), "base_model_name_or_path": str(qlora / "nf4")}
    config.write_text(json.dumps(settings))
    alone = check(tmp_path / "adapter", deep=True)
    assert alone == check(qlora / "nf4", tmp_path / "adapter", deep=True)
    assert "error" not in {f.severity for f in alone}


def test_what_changes_is_rounded_at_random_on_a_quantised_base_too(qlora, tmp_path):
    options = Options(rounding="stochastic", seed=3)
    receipt = merge(qlora / "nf4", qlora / "adapter", tmp_path / "out", options=options)
    assert receipt.kept.n_matrices == 14
    assert verify(qlora / "nf4", qlora / "adapter", tmp_path / "out", options=options, full=True).ok
    assert not verify(qlora / "nf4", qlora / "adapter", tmp_path / "out", options=Options(), full=True).ok


@pytest.mark.parametrize("form", ["nf4", "fp4", "fp4-nested", "int8"])
def test_every_form_of_training(qlora, tmp_path, form):
    kind, _, nested = form.partition("-")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": bool(nested)}
    settings = BitsAndBytesConfig(**({"load_in_8bit": True} if kind == "int8" else four))
    model = AutoModelForCausalLM.from_pretrained(qlora / "org" / "plain", quantization_config=settings)
    model.save_pretrained(tmp_path / "base")
    merge(tmp_path / "base", qlora / "adapter", tmp_path / "stored")
    options = Options(onto="dequantized", trained_on=form)
    merge(qlora / "org" / "plain", qlora / "adapter", tmp_path / "simulated", options=options)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("simulated", "stored"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_be_decided_is_asked(qlora, tmp_path):
    with pytest.raises(UsageError, match="how its base was quantised"):
        merge(qlora / "org" / "plain", qlora / "adapter", tmp_path / "out", options=Options(onto="dequantized"))
    with pytest.raises(InputError, match="BASE is quantised"):
        merge(qlora / "nf4", qlora / "adapter", tmp_path / "out", options=Options(onto="original"))
    assert not (tmp_path / "out").exists()


def test_the_default_is_told_with_its_reason(qlora, tmp_path):
    config = qlora / "adapter" / "adapter_config.json"
    (tmp_path / "adapter").mkdir()
    for file in (qlora / "adapter").iterdir():
        (tmp_path / "adapter" / file.name).write_bytes(file.read_bytes())
    settings = {**json.loads(config.read_text()), "base_model_name_or_path": "org/plain-bnb-4bit"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    receipt = merge(qlora / "org" / "plain", tmp_path / "adapter", tmp_path / "out")
    assert "merged onto BASE's own weights (--onto original), but the adapter was trained on" in receipt.notes[0]


def test_a_gguf_file_is_a_base(tmp_path):
    model = gguf_cases.make_model("llama")
    gguf_cases.write_gguf(tmp_path / "model.gguf", model, "llama")
    run = CliRunner().invoke(app, ["dequantize", str(tmp_path / "model.gguf"), "-o", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    expected = load(tmp_path, gguf_file="model.gguf").state_dict()
    found = load(tmp_path / "out").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
