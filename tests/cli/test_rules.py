"""suture rules"""

from __future__ import annotations

from suture.modes import MODES
from suture.rules import RULES


def test_every_rule_is_listed(run, document):
    text = run("rules").stdout
    assert all(f"  {code} " in text for code in RULES)
    code, table = document("rules")
    assert code == 0
    assert {row["code"] for row in table} == RULES.keys()
    assert all(row["looks_at"] for row in table)


def test_every_failure_mode_is_listed(run, document):
    text = run("rules", "--modes").stdout
    assert all(f"{mode.code} {mode.title}" in text for mode in MODES)
    _, ways = document("rules", "--modes")
    assert len(ways) == len(MODES)
