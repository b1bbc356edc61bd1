"""N507: updates out of proportion."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from rule_cases import HIDDEN, Q0, Q1, R, adapter, findings, llama, only
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM


def with_ratio(base, module, ratio):
    """Factors of a linear layer whose update is `ratio` times as large as the weight."""
    w = load_file(base / "model.safetensors")[f"{module}.weight"]
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((R, HIDDEN), (HIDDEN, R)))
    b *= ratio * np.linalg.norm(w) / np.linalg.norm(2 * b @ a)  # alpha 4, rank 2
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


def test_an_update_larger_than_the_weight(base, tmp_path):
    tensors = {**with_ratio(base, Q0, 1.25), **with_ratio(base, Q1, 0.5)}
    finding = only(base, adapter(tmp_path, tensors), "N507")
    assert (
        f"1 of 2 updates are out of proportion, as a share of the weight they change: {Q0}.weight 1.25" in finding.found
    )


def test_updates_below_the_weight(base, tmp_path):
    tensors = {**with_ratio(base, Q0, 0.9), **with_ratio(base, Q1, 0.5)}
    assert not findings(base, adapter(tmp_path, tensors), "N507")


def modules(base):
    return [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkvo"]


@pytest.mark.parametrize(("ratio", "fires"), [(0.3, True), (0.15, False), (0.05, False)])
def test_one_module_far_above_the_others(base, tmp_path, ratio, fires):
    first, *others = modules(base)
    usual = 0.02 if ratio != 0.05 else 0.001
    tensors = {k: v for m in others for k, v in with_ratio(base, m, usual).items()} | with_ratio(base, first, ratio)
    tuned = adapter(tmp_path, tensors, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    assert bool(findings(base, tuned, "N507")) == fires


def test_an_alpha_for_another_rank(tmp_path, quiet_torch):
    """What PEFT saved, with an alpha that is a hundred times as large."""
    base = tiny.make_base(tmp_path / "base")
    model = tiny.wrapped(AutoModelForCausalLM.from_pretrained(base))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.01)
    model.save_pretrained(tmp_path / "adapter")
    assert not findings(base, tmp_path / "adapter", "N507")
    wrong = shutil.copytree(tmp_path / "adapter", tmp_path / "wrong")
    config = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 100 * config["lora_alpha"]}))
    assert "6 of 6 updates" in only(base, wrong, "N507").found


def test_a_weight_of_zeros(tmp_path):
    base = llama(tmp_path / "base", tensors={f"{Q0}.weight": np.zeros((HIDDEN, HIDDEN), np.float32)})
    tensors = {**with_ratio(base, Q1, 0.1), f"{Q0}.lora_A.weight": np.ones((R, HIDDEN), np.float32)}
    tensors[f"{Q0}.lora_B.weight"] = np.ones((HIDDEN, R), np.float32)
    assert not findings(base, adapter(tmp_path / "adapter", tensors), "N507")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def dora(request, tmp_path_factory, quiet_torch):
    """A base, and a DoRA that PEFT trained on it for some steps; GPT-2 stores its layers transposed."""
    root = tmp_path_factory.mktemp("dora")
    base = tiny.make_base(root / "base", kind=request.param)
    targets = ["c_attn", "c_fc"] if request.param == "gpt2" else [*tiny.TARGETS]
    live = tiny.wrapped(AutoModelForCausalLM.from_pretrained(base), use_dora=True, target_modules=targets)
    optimizer = torch.optim.AdamW([p for p in live.parameters() if p.requires_grad], lr=1e-3)
    tokens = torch.arange(3, 60).reshape(1, -1)
    for _ in range(5):
        live(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    live.save_pretrained(root / "adapter")
    return base, root / "adapter"


def test_a_trained_dora(dora):
    assert not findings(*dora, "N507")


def test_one_value_of_a_dora(dora, tmp_path):
    """One exponent bit: the row's direction is the damaged value's alone, its length is as it was."""
    base, tuned = dora
    shutil.copytree(tuned, tmp_path / "damaged")
    tensors = load_file(tuned / "adapter_model.safetensors")
    key = next(name for name in sorted(tensors) if "lora_B" in name)
    tensors[key][5, 1] = 2.0**40 * tensors[key][5, 1]
    save_file(tensors, tmp_path / "damaged" / "adapter_model.safetensors", metadata={"format": "pt"})
    finding = only(base, tmp_path / "damaged", "N507")
    assert "1 of " in finding.found
    assert key.removeprefix("base_model.model.").removesuffix(".lora_B.weight") in finding.found


def test_a_dora_that_was_not_trained(dora, tmp_path):
    live = tiny.wrapped(AutoModelForCausalLM.from_pretrained(dora[0]), use_dora=True, target_modules="all-linear")
    live.save_pretrained(tmp_path)
    assert not findings(dora[0], tmp_path, "N507")
