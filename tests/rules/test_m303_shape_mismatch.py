"""M303: factors of another size."""

from __future__ import annotations

from rule_cases import BOTH, HIDDEN, Q0, adapter, findings, only, pair, random


def test_factors_of_a_larger_model(base, tmp_path):
    finding = only(base, adapter(tmp_path, {**BOTH, **pair(Q0, 2 * HIDDEN, 2 * HIDDEN)}), "M303")
    assert f"[{HIDDEN}, {HIDDEN}]" in finding.expected
    assert Q0 in finding.where


def test_a_bias_for_a_layer_without(base, tmp_path):
    tensors = {**BOTH, f"{Q0}.lora_B.bias": random(HIDDEN)}
    assert only(base, adapter(tmp_path, tensors, lora_bias=True), "M303").where.endswith("lora_B.bias")


def test_factors_that_fit(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "M303")
