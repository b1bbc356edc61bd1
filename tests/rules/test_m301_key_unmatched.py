"""M301: names that lead nowhere."""

from __future__ import annotations

import dataclasses

from rule_cases import BOTH, PREFIX, adapter, findings, only

from suture import pipeline
from suture.rules.m301_key_unmatched import check
from suture.values import Options


def test_a_missing_level(base, tmp_path):
    tensors = {PREFIX + name.removeprefix("model."): array for name, array in BOTH.items()}
    finding = only(base, adapter(tmp_path, tensors), "M301")
    assert finding.found.startswith("4 of 4 tensors")
    assert "insert model. after base_model.model." in finding.do
    assert f"→ {PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight" in finding.do


def test_one_stranger_is_enough(base, tmp_path):
    tensors = {**BOTH, "model.layers.7.self_attn.q_proj.lora_A.weight": BOTH[next(iter(BOTH))]}
    assert only(base, adapter(tmp_path, tensors), "M301").found.startswith("1 of 5 tensors")


def test_all_names_fit(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "M301")


def test_a_tensor_without_place_and_without_reason(base, tmp_path):
    """Whatever resolving forgets must not be lost without a word."""
    tuned = adapter(tmp_path, BOTH)
    case = pipeline.load_case(base, tuned, Options(), pipeline.Reading())
    assert not [*check(case)]
    lost = dataclasses.replace(case, resolved=dataclasses.replace(case.resolved, leftover=("x.weight",)))
    (finding,) = check(lost)
    assert "x.weight" in finding.found
