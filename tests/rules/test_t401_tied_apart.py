"""T401: tied parameters that the adapter changes differently."""

from __future__ import annotations

import pytest
from rule_cases import BOTH, EMBED, HEAD, HIDDEN, VOCAB, adapter, findings, head_only, only, random

from suture.values import Options


def test_the_pair_comes_apart(tied_base, tmp_path):
    finding = only(tied_base, head_only(tmp_path), "T401")
    assert finding.severity == "info"
    assert f"grows by {VOCAB * HIDDEN * 4:,} bytes" in finding.found


@pytest.mark.parametrize("tied", ["refuse", "keep"])
def test_the_user_does_not_want_that(tied_base, tmp_path, tied):
    finding = only(tied_base, head_only(tmp_path), "T401", Options(tied=tied))
    assert finding.severity == "error"
    assert "--tied auto" in finding.do


def test_one_change_for_both(tied_base, tmp_path):
    matrix = random(VOCAB, HIDDEN, seed=5)
    tensors = {**BOTH, f"{EMBED}.weight": matrix, f"{HEAD}.weight": matrix}
    tuned = adapter(tmp_path, tensors, modules_to_save=["embed_tokens", "lm_head"])
    assert not findings(tied_base, tuned, "T401", Options(tied="keep"))


def test_nothing_is_tied(base, tmp_path):
    assert not findings(base, head_only(tmp_path), "T401")


def test_tied_parameters_that_are_left_alone(tied_base, tmp_path):
    assert not findings(tied_base, adapter(tmp_path, BOTH), "T401", Options(tied="refuse"))
