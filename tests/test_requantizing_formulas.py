"""Merges that keep FP8, MXFP4 and NVFP4: whole models, layers of experts too."""

import json
import shutil

import pytest
import torch
from packed_cases import random_bytes
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_requantizing import FEED
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, GptOssConfig, LlamaConfig, Qwen3MoeConfig
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from suture import Options, dequantize, merge, verify
from suture.verification.logits import LogitsSettings

SIZES = {"num_hidden_layers": 1, "vocab_size": 64, "num_attention_heads": 2, "head_dim": 32, "dtype": "bfloat16"}
LLAMA = LlamaConfig(**SIZES, hidden_size=64, intermediate_size=96, num_key_value_heads=1)
MOE = Qwen3MoeConfig(
    **SIZES,
    hidden_size=64,
    intermediate_size=96,
    moe_intermediate_size=64,
    num_experts=3,
    num_experts_per_tok=2,
    num_key_value_heads=1,
)
OSS = GptOssConfig(
    **SIZES,
    hidden_size=64,
    intermediate_size=32,
    num_local_experts=3,
    num_experts_per_tok=2,
    num_key_value_heads=1,
    layer_types=["full_attention"],
)
PROJECTIONS = ["q_proj", "down_proj"]
EXPERTS = ["mlp.experts.down_proj"]
OPTIONS = Options(output="same", ignore=("N512",))


def same(one, other):
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def fp8(name, values):
    quantizer = type("Settings", (), {"quantization_config": FineGrainedFP8Config(weight_block_size=[32, 32])})
    return Fp8Quantize(quantizer).convert({name: values})


def nvfp4(name, values):
    scales = (values.float().abs().reshape(len(values), -1, 16).amax(-1) / 6 / 2e-4).to(torch.float8_e4m3fn)
    packed = random_bytes(len(values), values.shape[1] // 2)
    return {name: packed, f"{name}_scale": scales, f"{name}_scale_2": torch.tensor(2e-4)}


def mxfp4(name, values):
    experts, n_in, n_out = values.shape
    powers = torch.full((experts, n_out, n_in // 32), 127 - 6, dtype=torch.uint8)
    return {f"{name}_blocks": random_bytes(experts, n_out, n_in // 32, 16), f"{name}_scales": powers}


FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head", "gate"]}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
IN_EXPERTS = {"target_modules": ["q_proj"], "target_parameters": EXPERTS}
CASES = {
    "fp8": (LLAMA, fp8, ".weight", FP8, {"target_modules": PROJECTIONS}),
    "fp8-experts": (MOE, fp8, "_proj.weight", FP8, IN_EXPERTS),
    "nvfp4": (LLAMA, nvfp4, ".weight", NVFP4, {"target_modules": PROJECTIONS}),
    "mxfp4": (OSS, mxfp4, "_proj", {"quant_method": "mxfp4"}, IN_EXPERTS),
}


@pytest.fixture(scope="module", params=sorted(CASES))
def made(request, tmp_path_factory, quiet_torch):
    """A quantised base, what it stands for, an adapter, and the merge that keeps the form."""
    config, quantize, ending, settings, targets = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "plain")
    tensors = {}
    for name, values in load_file(folder / "plain" / "model.safetensors").items():
        inside = "_proj" in name and name.endswith(ending)
        tensors |= quantize(name, values) if inside else {name: values}
    (folder / "base").mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "base" / "model.safetensors", {"format": "pt"})
    (folder / "base" / "config.json").write_text(json.dumps({**config.to_dict(), "quantization_config": settings}))
    dequantize(folder / "base", folder / "dense")
    model = AutoModelForCausalLM.from_pretrained(folder / "dense", dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=2, lora_alpha=8, task_type="CAUSAL_LM", **targets))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.08)
    tuned.save_pretrained(folder / "adapter")
    receipt = merge(folder / "base", folder / "adapter", folder / "out", options=OPTIONS)
    assert any("are quantised again" in note for note in receipt.notes)
    return request.param, folder


def test_it_verifies_and_a_missing_update_does_not(made, tmp_path):
    _, folder = made
    assert verify(folder / "base", folder / "adapter", folder / "out", options=OPTIONS, full=True).ok
    base, out = (load_file(folder / name / "model.safetensors") for name in ("base", "out"))
    changed = {name for name in base if not same(base[name], out[name])}
    assert len(changed) >= 2
    for name in sorted(changed):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes((folder / "out" / "config.json").read_bytes())
        save_file({**out, name: base[name]}, tmp_path / name / "model.safetensors", {"format": "pt"})
        verdict = verify(folder / "base", folder / "adapter", tmp_path / name, options=OPTIONS)
        assert [(w.tensor, w.status) for w in verdict.wrong] == [(name, "unchanged")]


def test_what_nothing_changes_keeps_its_bytes(made):
    _, folder = made
    base, out = (load_file(folder / name / "model.safetensors") for name in ("base", "out"))
    assert {n: (t.dtype, t.shape) for n, t in base.items()} == {n: (t.dtype, t.shape) for n, t in out.items()}
    touched = ("q_proj", "down_proj")
    for name in base:
        if not any(word in name for word in touched) or name.endswith("scale_2"):
            assert same(base[name], out[name]), name


def test_modelopts_own_file_stays_with_quantised_weights_alone(made, tmp_path):
    kind, folder = made
    if kind != "nvfp4":
        pytest.skip("not ModelOpt's")
    base = shutil.copytree(folder / "base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    said = config.pop("quantization_config")
    (base / "config.json").write_text(json.dumps(config))
    (base / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": said["quant_algo"]}}))
    for form in ("same", "dense"):
        options = Options(output=form, ignore=("N512",))
        merge(base, folder / "adapter", tmp_path / form, options=options)
        assert (tmp_path / form / "hf_quant_config.json").exists() == (form == "same")
        merge(folder / "base", folder / "adapter", tmp_path / f"{form}-said", options=options)
        one, other = (load_file(tmp_path / name / "model.safetensors") for name in (form, f"{form}-said"))
        assert all(same(one[name], other[name]) for name in one)


def test_it_computes_nearly_what_base_and_adapter_compute(made, tmp_path):
    kind, folder = made
    dequantize(folder / "out", tmp_path / "out")
    base, merged = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (folder / "dense", tmp_path / "out")
    )
    with torch.no_grad():
        bare, ours = base(FEED % 64).logits, merged(FEED % 64).logits
        tuned = PeftModel.from_pretrained(base, folder / "adapter").eval()(FEED % 64).logits
    left = (ours - tuned).norm() / (bare - tuned).norm()
    assert left < (0.25 if kind.startswith("fp8") else 0.8)


def test_the_proof_by_the_forward_pass(made):
    kind, folder = made
    if kind == "nvfp4":
        pytest.skip("Transformers does not load it")
    settings = LogitsSettings(n_prompts=2)
    verdict = verify(folder / "base", folder / "adapter", folder / "out", options=OPTIONS, logits=settings)
    assert verdict.ok
    assert verdict.logits is not None
