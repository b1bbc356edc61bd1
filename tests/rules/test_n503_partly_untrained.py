"""N503: modules that training did not reach."""

from __future__ import annotations

from rule_cases import BOTH, EMBED, HEAD, HIDDEN, Q0, Q1, VOCAB, adapter, embedding_pair, findings, only, pair, random

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


def test_all_factors_on_a_resized_vocabulary(base, tmp_path):
    """The rows that were added are saved beside the factors, and no factor learned."""
    tensors = {**BOTH, **pair(HEAD, HIDDEN, VOCAB + 2), f"{HEAD}.base_layer.weight": random(VOCAB + 2, HIDDEN)}
    tensors |= {**embedding_pair(rows=VOCAB + 2), f"{EMBED}.base_layer.weight": random(VOCAB + 2, HIDDEN)}
    tensors = {name: array * (0 if "_B" in name else 1) for name, array in tensors.items()}
    tuned = adapter(tmp_path, tensors, target_modules=["q_proj", "lm_head", "embed_tokens"])
    assert only(base, tuned, "N503").found.startswith("4 of 4 updates")
