"""M310: patterns whose order decides."""

from __future__ import annotations

from rule_cases import BOTH, Q0, Q1, adapter, findings, only, pair

ORDER = {"layers.1.self_attn.q_proj": 8, "q_proj": 16}


def test_two_alphas_for_one_module(base, tmp_path):
    finding = only(base, adapter(tmp_path, BOTH, alpha_pattern=ORDER), "M310")
    assert finding.severity == "warning"
    assert Q1 in finding.found
    assert Q0 not in finding.found
    assert "uses 8" in finding.do


def test_equal_values(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH, alpha_pattern=dict.fromkeys(ORDER, 8)), "M310")


def test_patterns_that_do_not_meet(base, tmp_path):
    patterns = {"layers.0.self_attn.q_proj": 8, "layers.1.self_attn.q_proj": 16, "k_proj": 4}
    assert not findings(base, adapter(tmp_path, BOTH, alpha_pattern=patterns), "M310")


def test_a_rank_that_the_file_contradicts(base, tmp_path):
    ranks = {"layers.1.self_attn.q_proj": 1, "q_proj": 2}
    assert "rank_pattern" in only(base, adapter(tmp_path, BOTH, rank_pattern=ranks), "M310").where


def test_a_rank_that_the_file_confirms(base, tmp_path):
    ranks = {"layers.1.self_attn.q_proj": 1, "q_proj": 2}
    tuned = adapter(tmp_path, {**BOTH, **pair(Q1, r=1)}, rank_pattern=ranks)
    assert not findings(base, tuned, "M310")
