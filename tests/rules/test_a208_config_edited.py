"""A208: the config against the one in the ledger."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ledgers import beside
from rule_cases import BOTH, adapter, findings, only

from suture.formats.ledger import NAME
from suture.pipeline import Reading, load_case
from suture.rules.a208_config_edited import RULE
from suture.values import Options


@pytest.mark.parametrize(
    ("field", "before"),
    [("lora_alpha", 8), ("use_rslora", True), ("alpha_pattern", {"q_proj": 1}), ("target_modules", ["v_proj"])],
)
def test_a_field_was_changed(base, tmp_path, field, before):
    finding = only(base, beside(adapter(tmp_path, BOTH), **{field: before}), "A208")
    assert finding.where == f"adapter_config.json: {field}"
    assert repr(before) in finding.expected


@pytest.mark.parametrize(
    "before", [{}, {"inference_mode": False}, {"lora_dropout": 0.1}, {"alpha_pattern": {}}, {"modules_to_save": []}]
)
def test_nothing_that_counts(base, tmp_path, before):
    assert not findings(base, beside(adapter(tmp_path, BOTH), **before), "A208")


def test_the_order_of_a_list(base, tmp_path):
    tuned = adapter(tmp_path, BOTH, target_modules=["q_proj", "x"])
    assert not findings(base, beside(tuned, target_modules=["x", "q_proj"]), "A208")


@pytest.mark.parametrize("problem", ["", "a ledger of version 2"])
def test_a_ledger_that_cannot_be_read(base, tmp_path, problem):
    case = load_case(base, adapter(tmp_path, BOTH), Options(), Reading())
    found = list(RULE.pair(replace(case, ledger=None, ledger_problem=problem)))
    assert [(f.severity, f.where) for f in found] == ([("warning", NAME)] if problem else [])
    assert all(problem in f.found for f in found)


def test_no_ledger(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH, lora_alpha=32), "A208")
