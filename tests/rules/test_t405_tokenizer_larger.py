"""T405: more tokens than rows."""

from __future__ import annotations

import model_cases as models
import pytest
from rule_cases import BOTH, EMBED, HEAD, HIDDEN, VOCAB, adapter, findings, llama, only, random, tokenizer

from suture.values import Options


def words(n):
    return {f"w{i}": i for i in range(n)}


@pytest.fixture
def talking_base(tmp_path):
    return tokenizer(llama(tmp_path / "base"), words(VOCAB))


def test_a_token_without_row(talking_base, tmp_path):
    tuned = tokenizer(adapter(tmp_path / "adapter", BOTH), words(VOCAB + 1))
    finding = only(talking_base, tuned, "T405")
    assert finding.severity == "warning"
    assert f"{VOCAB + 1} tokens" in finding.found
    assert not findings(talking_base, tuned, "T405", Options(tokenizer="base"))


def test_a_row_for_every_token(talking_base, tmp_path):
    ends = {f"{end}.weight": random(VOCAB + 1, HIDDEN) for end in (EMBED, HEAD)}
    tuned = adapter(tmp_path / "adapter", {**BOTH, **ends}, modules_to_save=["embed_tokens", "lm_head"])
    assert not findings(talking_base, tokenizer(tuned, words(VOCAB + 1)), "T405")


def test_the_bases_own_tokens(talking_base, tmp_path):
    tuned = tokenizer(adapter(tmp_path / "adapter", BOTH), words(VOCAB))
    assert not findings(talking_base, tuned, "T405")


def test_a_finished_model(tmp_path):
    folder = tokenizer(llama(tmp_path / "model"), words(VOCAB + 2))
    finding = models.only(folder, "T405")
    assert finding.severity == "warning"
    assert "2 tokens" in finding.found
    assert not models.found(tokenizer(folder, words(VOCAB)), "T405")
