"""M311: a parameter that is in the file twice."""

from __future__ import annotations

from rule_cases import BOTH, EMBED, HIDDEN, VOCAB, adapter, findings, only, random

TRAINED = random(VOCAB, HIDDEN, seed=7)


def twice(folder, again):
    tensors = {**BOTH, f"{EMBED}.weight": TRAINED, f"{EMBED}.modules_to_save.weight": again}
    return adapter(folder, tensors, modules_to_save=["embed_tokens"])


def test_the_two_differ(base, tmp_path):
    finding = only(base, twice(tmp_path, TRAINED + 1), "M311")
    assert f"{EMBED}.modules_to_save.weight" in finding.where
    assert f"{EMBED}.weight" in finding.found


def test_the_two_are_equal(base, tmp_path):
    assert not findings(base, twice(tmp_path, TRAINED), "M311")
