"""L902: a LoRA on top of a LoRA."""

from __future__ import annotations

import pytest
from live_cases import found
from peft import LoraConfig, get_peft_model
from tiny import wrapped


@pytest.mark.filterwarnings("ignore")  # PEFT warns; what matters is that it goes on
def test_get_peft_model_twice():
    model = get_peft_model(wrapped(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    (finding,) = found(model, "L902")
    assert "wrapped twice" in finding.found


def test_a_second_adapter_that_trains_too():
    model = wrapped()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    (finding,) = found(model, "L902")
    assert "other" in finding.found


def test_a_second_adapter_at_rest():
    model = wrapped()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    assert not found(model, "L902")
