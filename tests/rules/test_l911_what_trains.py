"""L911: what the target patterns came to."""

from __future__ import annotations

from live_cases import found
from tiny import wrapped


def test_modules_and_counts_are_listed():
    (finding,) = found(wrapped(), "L911")
    assert finding.severity == "info"
    assert "q_proj × 2" in finding.found


def test_what_is_not_trained_is_not_listed():
    (finding,) = found(wrapped(target_modules=["o_proj"]), "L911")
    assert "q_proj" not in finding.found
