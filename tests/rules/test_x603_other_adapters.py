"""X603: more adapters than one."""

from __future__ import annotations

import tiny
from peft import LoraConfig
from rule_cases import BOTH, adapter, findings, only
from transformers import AutoModelForCausalLM

from suture.pipeline import Reading


def test_two_adapters_that_peft_saved(tmp_path, quiet_torch):
    base = tiny.make_base(tmp_path / "base")
    model = tiny.wrapped(AutoModelForCausalLM.from_pretrained(base))
    model.add_adapter("reference", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    tiny.trained(model).save_pretrained(tmp_path / "adapter")
    finding = only(base, tmp_path / "adapter", "X603")
    assert finding.severity == "info"
    assert "reference" in finding.where
    assert "only default is merged" in finding.found


def test_the_one_in_the_subfolder(base, tmp_path):
    adapter(tmp_path, BOTH)
    adapter(tmp_path / "second", BOTH)
    (finding,) = findings(base, tmp_path, "X603", reading=Reading(adapter_name="second"))
    assert "default" in finding.where
    assert not findings(base, tmp_path / "second", "X603"), "named by its own folder, it stands alone"


def test_a_trainers_checkpoints(base, tmp_path):
    adapter(tmp_path, BOTH)
    adapter(tmp_path / "checkpoint-10", BOTH)
    (tmp_path / "logs").mkdir()
    assert not findings(base, tmp_path, "X603")


def test_one_adapter(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "X603")
