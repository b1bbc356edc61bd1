"""M312: an adapter on an adapter."""

from __future__ import annotations

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from rule_cases import BOTH, PREFIX, Q0, Q1, adapter, findings, only, pair
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quiet_torch):
    """A base."""
    return tiny.make_base(tmp_path_factory.mktemp("twice") / "base")


def test_get_peft_model_on_a_peft_model(folder, tmp_path):
    first = tiny.trained(tiny.wrapped(AutoModelForCausalLM.from_pretrained(folder)))
    with pytest.warns(UserWarning, match="second time"), pytest.warns(UserWarning, match="Already found"):
        second = get_peft_model(first, LoraConfig(r=4, target_modules=list(tiny.TARGETS)))
    tiny.trained(second).save_pretrained(tmp_path)
    finding = only(folder, tmp_path, "M312")
    assert finding.severity == "error"
    assert "12 of 12 tensors" in finding.found
    assert "insert" not in finding.do
    assert findings(folder, tmp_path, "M301"), "which offers the rewriting"


def test_training_that_goes_on_as_it_should(folder, tmp_path):
    from peft import PeftModel

    tiny.trained(tiny.wrapped(AutoModelForCausalLM.from_pretrained(folder))).save_pretrained(tmp_path / "first")
    again = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), tmp_path / "first", is_trainable=True
    )
    tiny.trained(again).save_pretrained(tmp_path / "second")
    assert not findings(folder, tmp_path / "second", "M312")


def test_a_factor_that_was_a_target(base, tmp_path):
    inner = {f"{Q0}.lora_A.default.lora_B.weight": BOTH[f"{Q0}.lora_B.weight"], **pair(Q1)}
    assert "1 of 3" in only(base, adapter(tmp_path, inner), "M312").found


def test_wrappers_of_fused_experts_are_nested_too(base_of, tmp_path):
    from zoo import FAMILIES, load

    model = load(FAMILIES["mixtral"], base_of("mixtral"))
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["gate_up_proj", "down_proj"])
    tiny.trained(get_peft_model(model, config)).save_pretrained(tmp_path)
    assert not findings(base_of("mixtral"), tmp_path, "M312")


def test_the_prefix_is_counted_whole(base, tmp_path):
    tensors = {PREFIX + "model." + name: array for name, array in BOTH.items()}
    assert not findings(base, adapter(tmp_path, tensors), "M312")
