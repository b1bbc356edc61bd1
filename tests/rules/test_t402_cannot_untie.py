"""T402: ties that cannot be undone."""

from __future__ import annotations

from rule_cases import adapter, findings, head_only, only, pair


def test_the_head_of_t5(base_of, tmp_path):
    tuned = adapter(tmp_path, pair("lm_head", 32, 96), target_modules=["lm_head"])
    finding = only(base_of("t5"), tuned, "T402")
    assert "lm_head.weight" in finding.where
    assert "cannot keep them apart" in finding.found


def test_another_layer_of_t5(base_of, tmp_path):
    name = "encoder.block.0.layer.0.SelfAttention.q"
    assert not findings(base_of("t5"), adapter(tmp_path, pair(name, 32, 32), target_modules=[name]), "T402")


def test_the_head_of_llama(tied_base, tmp_path):
    assert not findings(tied_base, head_only(tmp_path), "T402")
