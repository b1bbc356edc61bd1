"""suture plan"""

from __future__ import annotations

import re

import pytest

from suture import compiled
from suture.cli._options import Running
from suture.codec import from_json
from suture.values import Plan


def test_decisions_and_needs(run, base, adapters):
    result = run("plan", base, adapters / "head")
    assert result.exit_code == 0
    assert (
        "model.embed_tokens.weight and lm_head.weight get a tensor each: the model grows by 12.0 KiB" in result.stdout
    )
    assert "  copy               20" in result.stdout
    assert "  untie               1              12,288" in result.stdout
    assert "config.json (generated)" in result.stdout
    assert "MiB, with" in result.stdout
    assert "name OUT with -o" in result.stdout
    assert result.stderr == ""


def test_time_is_measured_beside_the_output(run, base, adapters, tmp_path):
    result = run("plan", base, adapters / "qv", "-o", tmp_path / "out")
    assert "  time        about " in result.stdout
    assert [*tmp_path.iterdir()] == []


def test_json_has_the_plan_and_what_it_costs(document, base, adapters):
    code, found = document("plan", base, adapters / "qv", "--workers", "1")
    plan = from_json(Plan, found["plan"])
    assert code == 0
    assert sum(op.why == "merge" for op in plan.operations) == 4
    assert found["n_bytes_computed"] + found["n_bytes_copied"] == plan.n_bytes_written
    assert (found["workers"], found["seconds"]) == (1, None)


def test_what_rounding_keeps_is_told_where_there_is_any(run, base, adapters):
    told = run("plan", base, adapters / "qv", "--dtype", "bf16").stdout
    assert re.search(
        r"  updates     to nearest \d+% kept, cosine \d\.\d\d; at random \d+% kept, cosine \d\.\d\d \(rows of 4 m", told
    )
    assert "updates" not in run("plan", base, adapters / "qv").stdout


def test_a_missing_kernel_is_told(run, base, adapters, monkeypatch):
    assert "numpy computes" not in run("plan", base, adapters / "qv").stdout
    monkeypatch.setattr(compiled, "why_not", lambda: "no compiler")
    assert (
        "numpy computes this merge, at about half the speed: no compiler" in run("plan", base, adapters / "qv").stdout
    )


@pytest.mark.parametrize("text", ["", "much", "1e9", "-5MB", "12XB", "5 parsecs"])
def test_what_is_no_size(run, base, adapters, text):
    result = run("plan", base, adapters / "qv", "--max-memory", text)
    assert result.exit_code == 2
    assert "is not a size" in result.stderr


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("500MB", 500_000_000), ("2GiB", 2 << 30), ("1.5 g", 1_500_000_000), ("4096", 4096)]
)
def test_sizes(text, n_bytes):
    assert Running(max_memory=text).settings().max_memory == n_bytes


def test_options_reach_the_plan(document, base, adapters):
    _, found = document("plan", base, adapters / "qv", "--dtype", "bf16", "--tied", "untie")
    assert {op["dtype"] for op in found["plan"]["operations"]} == {"BF16"}
    assert found["plan"]["options"]["tied"] == "untie"


def test_a_refusal_lists_the_findings_on_stderr(run, base, adapters):
    result = run("plan", base, adapters / "lost")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error M301 key-unmatched" in result.stderr
    assert result.stderr.endswith("Nothing was written.\n")


def test_a_refusal_is_one_document(document, base, adapters):
    code, found = document("plan", base, adapters / "lost")
    assert code == 1
    assert found["error"]["type"] == "Findings"
    assert [f["code"] for f in found["findings"]] == ["M301"]
