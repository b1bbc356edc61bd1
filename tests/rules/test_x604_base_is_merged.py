"""X604: an adapter on a base that has it already."""

from __future__ import annotations

import pytest
from rule_cases import BOTH, adapter, findings, only

import suture
from suture.errors import Findings


@pytest.fixture
def merged(base, tmp_path):
    suture.merge(base, adapter(tmp_path / "tuned", BOTH), tmp_path / "merged")
    return tmp_path / "merged"


def test_the_same_adapter_once_more(merged, tmp_path):
    finding = only(merged, tmp_path / "tuned", "X604")
    assert finding.severity == "error"
    assert "tiny-llama with this adapter (tuned)" in finding.found
    with pytest.raises(Findings, match="X604"):
        suture.merge(merged, tmp_path / "tuned", tmp_path / "twice")


def test_another_adapter_on_the_result(merged, tmp_path):
    stage = adapter(tmp_path / "stage", {name: array + 1 for name, array in BOTH.items()})
    assert only(merged, stage, "X604").severity == "info"


def test_a_base_that_is_no_merge(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "X604")
