"""M304: another rank than the config's."""

from __future__ import annotations

from rule_cases import BOTH, Q0, Q1, adapter, findings, only, pair

UNEVEN = {**pair(Q0, r=4), **pair(Q1)}


def test_the_file_has_another_rank(base, tmp_path):
    finding = only(base, adapter(tmp_path, UNEVEN), "M304")
    assert "rank 4" in finding.found
    assert "rank 2" in finding.expected


def test_a_pattern_explains_it(base, tmp_path):
    assert not findings(base, adapter(tmp_path, UNEVEN, rank_pattern={"layers.0.self_attn.q_proj": 4}), "M304")


def test_the_configs_rank(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "M304")
