"""M303: factors of another size."""

from __future__ import annotations

from rule_cases import (
    BOTH,
    HIDDEN,
    INTER,
    Q0,
    adapter,
    findings,
    llama,
    only,
    pair,
    random,
)


def test_factors_of_a_larger_model(base, tmp_path):
    finding = only(base, adapter(tmp_path, {**BOTH, **pair(Q0, 2 * HIDDEN, 2 * HIDDEN)}), "M303")
    assert f"[{HIDDEN}, {HIDDEN}]" in finding.expected
    assert Q0 in finding.where


def test_a_bias_for_a_layer_without(base, tmp_path):
    tensors = {**BOTH, f"{Q0}.lora_B.bias": random(HIDDEN)}
    assert only(base, adapter(tmp_path, tensors, lora_bias=True), "M303").where.endswith("lora_B.bias")


def test_factors_that_fit(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "M303")


def test_a_base_whose_tensor_is_stored_the_other_way_round(tmp_path):
    """Read as the values of a matrix of the right shape, it would be merged, and be no one's weights."""
    up = "model.layers.0.mlp.up_proj"
    base = llama(tmp_path / "base", tensors={f"{up}.weight": random(HIDDEN, INTER)})
    tuned = adapter(tmp_path / "tuned", pair(up, HIDDEN, INTER), target_modules=[up])
    finding = only(base, tuned, "M303")
    assert f"model.safetensors: {up}.weight" in finding.where
    assert not findings(llama(tmp_path / "sound"), tuned, "M303")
