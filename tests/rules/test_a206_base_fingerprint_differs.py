"""A206: the base's bytes against the ledger's."""

from __future__ import annotations

import dataclasses

import pytest
from ledgers import beside
from rule_cases import BOTH, HIDDEN, adapter, findings, llama, only, random

import suture
from suture import pipeline
from suture.formats import fingerprint, read_checkpoint
from suture.rules import RULES
from suture.values import Options


@pytest.fixture
def tuned(base, tmp_path):
    """An adapter with a ledger of a run on the base."""
    return beside(adapter(tmp_path / "adapter", BOTH), fingerprint=fingerprint(read_checkpoint(base)))


def test_one_value_of_the_base_is_another(tuned, tmp_path):
    other = llama(tmp_path / "other", rms_norm_eps=1e-5)
    assert not findings(other, tuned, "A206"), "the config alone is no other base"
    other = llama(tmp_path / "other", tensors={"model.norm.weight": random(HIDDEN, seed=7)})
    finding = only(other, tuned, "A206")
    assert finding.severity == "error"
    assert "org/tiny" in finding.found


def test_the_base_of_the_run(base, tuned):
    assert not findings(base, tuned, "A206")


@pytest.mark.parametrize("facts", [{"fingerprint": None}, {"fingerprint": "0" * 64, "quantize": "nf4"}])
def test_nothing_to_compare(base, tmp_path, facts):
    assert not findings(base, beside(adapter(tmp_path, BOTH), **facts), "A206")


def test_a_merge_refuses_and_can_be_told_not_to(tuned, tmp_path):
    other = llama(tmp_path / "other", tensors={"model.norm.weight": random(HIDDEN, seed=7)})
    case = pipeline.load_case(other, tuned, Options(), pipeline.Reading(), "values")
    (finding,) = RULES["A206"].pair(case)
    with pytest.raises(pipeline.Findings, match="fingerprint"):
        pipeline.plan_of(case)
    told = dataclasses.replace(case, options=Options(ignore=("A206",)))
    assert pipeline.plan_of(told).base_fingerprint[:12] in finding.expected


def test_headers_alone_do_not_tell(tuned, tmp_path):
    other = llama(tmp_path / "other", tensors={"model.norm.weight": random(HIDDEN, seed=7)})
    assert not [f for f in suture.check(other, tuned) if f.code == "A206"]
