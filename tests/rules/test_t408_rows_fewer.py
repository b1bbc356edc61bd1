"""T408: an adapter for fewer tokens than the base has rows."""

from __future__ import annotations

from rule_cases import BOTH, EMBED, HEAD, HIDDEN, VOCAB, adapter, embedding_pair, findings, only, pair, random


def test_a_head_that_was_cut_to_the_tokens(base, tmp_path):
    tensors = {**BOTH, **pair(HEAD, HIDDEN, VOCAB - 2)}
    finding = only(base, adapter(tmp_path, tensors, target_modules=["q_proj", "lm_head"]), "T408")
    assert finding.severity == "info"
    assert f"{VOCAB - 2} rows for lm_head.weight, the base {VOCAB}: the last 2 stay" in finding.found


def test_an_embedding_that_was_cut(base, tmp_path):
    tensors = {**BOTH, **embedding_pair(rows=VOCAB - 1)}
    assert only(base, adapter(tmp_path, tensors, target_modules=["q_proj", "embed_tokens"]), "T408").where.endswith(
        EMBED
    )


def test_all_rows_and_some_tokens(base, tmp_path):
    tensors = {**BOTH, **pair(HEAD, HIDDEN, VOCAB), f"{EMBED}.token_adapter.trainable_tokens_delta": random(2, HIDDEN)}
    tuned = adapter(tmp_path, tensors, target_modules=["q_proj", "lm_head"], trainable_token_indices=[3, 5])
    assert not findings(base, tuned, "T408")
