"""M309: a module in both lists."""

from __future__ import annotations

import pytest
from rule_cases import BOTH, EMBED, HEAD, HIDDEN, VOCAB, adapter, findings, only, random

FULL = {**BOTH, f"{HEAD}.weight": random(VOCAB, HIDDEN)}


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], r".*(q_proj|lm_head)"], ids=["list", "regex"])
def test_in_both_lists(base, tmp_path, targets):
    finding = only(base, adapter(tmp_path, FULL, target_modules=targets, modules_to_save=["lm_head"]), "M309")
    assert HEAD in finding.found
    assert finding.severity == "error"


@pytest.mark.parametrize("targets", [["q_proj"], r".*\.q_proj", "all-linear"], ids=["list", "regex", "all-linear"])
def test_in_one_list(base, tmp_path, targets):
    assert not findings(base, adapter(tmp_path, FULL, target_modules=targets, modules_to_save=["lm_head"]), "M309")


def test_all_linear_names_no_module(base, tmp_path):
    assert not findings(base, adapter(tmp_path, FULL, target_modules="all-linear", modules_to_save=["q_proj"]), "M309")


def test_different_modules(base, tmp_path):
    tensors = {**BOTH, f"{EMBED}.weight": random(VOCAB, HIDDEN)}
    tuned = adapter(tmp_path, tensors, target_modules=["q_proj", "lm_head"], modules_to_save=["embed_tokens"])
    assert not findings(base, tuned, "M309")


def test_part_of_a_saved_block(base, tmp_path):
    """A block that is saved as a whole, within what target_modules names everywhere, contradicts nothing."""
    tuned = adapter(tmp_path, BOTH, modules_to_save=["layers.1.self_attn"])
    assert not findings(base, tuned, "M309")
