"""A203: initialisations that changed the base."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rule_cases import BOTH, adapter, findings, only


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "lora_ga", "loftq", "novel"])
def test_the_base_was_changed(base, tmp_path, init):
    finding = only(base, adapter(tmp_path, BOTH, init_lora_weights=init), "A203")
    assert init in finding.found
    assert ("not known" in finding.found) == (init == "novel")


def test_a_loftq_config_alone(base, tmp_path):
    finding = only(base, adapter(tmp_path, BOTH, loftq_config={"loftq_bits": 4}), "A203")
    assert finding.where == "adapter_config.json: loftq_config"


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "Gaussian", "eva", "orthogonal", "mica"])
def test_the_base_was_left_alone(base, tmp_path, init):
    assert not findings(base, adapter(tmp_path, BOTH, init_lora_weights=init, loftq_config={}), "A203")


@pytest.mark.parametrize(("init", "changes"), [("pissa", True), ("olora", True), ("gaussian", False), ("mica", False)])
def test_peft_does_what_the_rule_says(init, changes):
    """PEFT itself: which of them change the base's weights when they are created."""
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    before = model[0].weight.detach().clone()
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=init))
    after = tuned.base_model.model[0].base_layer.weight
    assert torch.equal(before, after) != changes
