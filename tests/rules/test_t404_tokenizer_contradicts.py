"""T404: a tokenizer that numbers tokens in another way."""

from __future__ import annotations

import pytest
from rule_cases import BOTH, adapter, findings, llama, only, tokenizer

from suture.values import Options

WORDS = {"a": 0, "b": 1, "c": 2}


@pytest.fixture
def talking_base(tmp_path):
    return tokenizer(llama(tmp_path / "base"), WORDS)


@pytest.mark.parametrize("theirs", [{"a": 0, "b": 2, "c": 1}, {"a": 0, "b": 1}], ids=["moved", "missing"])
def test_a_contradiction(talking_base, tmp_path, theirs):
    tuned = tokenizer(adapter(tmp_path / "adapter", BOTH), theirs)
    finding = only(talking_base, tuned, "T404")
    assert "--tokenizer base" in finding.do


@pytest.mark.parametrize("choice", ["base", "adapter"])
def test_the_user_chose(talking_base, tmp_path, choice):
    tuned = tokenizer(adapter(tmp_path / "adapter", BOTH), {"a": 0, "b": 2, "c": 1})
    assert not findings(talking_base, tuned, "T404", Options(tokenizer=choice))


def test_an_extension(talking_base, tmp_path):
    tuned = tokenizer(adapter(tmp_path / "adapter", BOTH), {**WORDS, "<new>": 3})
    assert not findings(talking_base, tuned, "T404")
