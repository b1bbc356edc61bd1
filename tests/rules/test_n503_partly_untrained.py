"""N503: modules that training did not reach."""

from __future__ import annotations

from rule_cases import BOTH, HEAD, HIDDEN, Q0, Q1, VOCAB, adapter, findings, only, random

B1 = f"{Q1}.lora_B.weight"


def test_one_of_two_modules(base, tmp_path):
    finding = only(base, adapter(tmp_path, {**BOTH, B1: BOTH[B1] * 0}), "N503")
    assert finding.severity == "warning"
    assert finding.found.startswith("1 of 2 updates do nothing")
    assert Q1 in finding.found
    assert Q0 not in finding.found


def test_none(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "N503")


def test_all_of_them_is_another_rule(base, tmp_path):
    tensors = {name: array * ("lora_A" in name) for name, array in BOTH.items()}
    assert not findings(base, adapter(tmp_path, tensors), "N503")


def test_all_factors_beside_a_matrix_that_moved(base, tmp_path):
    """The head learned, and no gradient reached the LoRA."""
    tensors = {name: array * ("lora_A" in name) for name, array in BOTH.items()}
    tuned = adapter(tmp_path, {**tensors, f"{HEAD}.weight": random(VOCAB, HIDDEN)}, modules_to_save=["lm_head"])
    assert only(base, tuned, "N503").found.startswith("2 of 3 updates")
