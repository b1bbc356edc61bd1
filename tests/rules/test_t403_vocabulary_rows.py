"""T403: rows of the vocabulary."""

from __future__ import annotations

import pytest
from rule_cases import BOTH, EMBED, HEAD, HIDDEN, VOCAB, adapter, findings, only, random

DELTA = f"{EMBED}.token_adapter.trainable_tokens_delta"


def test_a_token_beyond_the_vocabulary(base, tmp_path):
    tensors = {**BOTH, DELTA: random(2, HIDDEN)}
    finding = only(base, adapter(tmp_path, tensors, trainable_token_indices=[3, VOCAB]), "T403")
    assert f"token {VOCAB}" in finding.found


def test_the_last_token(base, tmp_path):
    tensors = {**BOTH, DELTA: random(2, HIDDEN)}
    assert not findings(base, adapter(tmp_path, tensors, trainable_token_indices=[3, VOCAB - 1]), "T403")


@pytest.mark.parametrize("end", [EMBED, HEAD])
def test_an_end_with_fewer_rows(base, tmp_path, end):
    tensors = {**BOTH, f"{end}.weight": random(VOCAB - 1, HIDDEN)}
    tuned = adapter(tmp_path, tensors, modules_to_save=[end.rpartition(".")[2]])
    assert f"[{VOCAB - 1}, {HIDDEN}]" in findings(base, tuned, "T403")[0].found


def test_one_end_grows(base, tmp_path):
    tensors = {**BOTH, f"{EMBED}.weight": random(VOCAB + 4, HIDDEN)}
    found = findings(base, adapter(tmp_path, tensors, modules_to_save=["embed_tokens"]), "T403")
    assert "different numbers of rows" in found[0].found


def test_both_ends_grow(base, tmp_path):
    tensors = {**BOTH, f"{EMBED}.weight": random(VOCAB + 4, HIDDEN), f"{HEAD}.weight": random(VOCAB + 4, HIDDEN)}
    tuned = adapter(tmp_path, tensors, modules_to_save=["embed_tokens", "lm_head"])
    assert not findings(base, tuned, "T403")
