"""suture plan"""

from __future__ import annotations

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
    assert "60 to 100 MiB" in result.stdout
    assert result.stderr == ""


def test_json_is_the_plan(document, base, adapters):
    code, found = document("plan", base, adapters / "qv")
    plan = from_json(Plan, found)
    assert code == 0
    assert sum(op.why == "merge" for op in plan.operations) == 4


def test_options_reach_the_plan(document, base, adapters):
    _, found = document("plan", base, adapters / "qv", "--dtype", "bf16", "--tied", "untie")
    assert {op["dtype"] for op in found["operations"]} == {"BF16"}
    assert found["options"]["tied"] == "untie"


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
