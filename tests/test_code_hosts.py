"""SARIF and GitHub's annotations: every finding, its level, its file from the current folder, its place."""

from __future__ import annotations

import json

import pytest

from suture import code_hosts, pages
from suture.rules import RULES
from suture.values import Finding

MISSING = Finding(
    "M302", "factor-missing", "error", "adapter_model.safetensors: q.lora_B", "gone, 100 %", "both", "save"
)
NEWS = Finding("T401", "tied-apart", "info", "lm_head.weight", "they\npart", "", "Nothing.")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "adapter_model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tuned"


def test_sarif(folder):
    log = json.loads(json.dumps(code_hosts.sarif([MISSING, NEWS], [folder], "1.2")))
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    assert run["tool"]["driver"]["version"] == "1.2"
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["M302", "T401"]
    assert rules[0]["help"]["markdown"] == pages.explain("M302")
    missing, news = run["results"]
    assert (missing["ruleId"], missing["level"], news["level"]) == ("M302", "error", "note")
    assert rules[news["ruleIndex"]]["id"] == "T401"
    (place,) = missing["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "tuned/adapter_model.safetensors"
    assert place["logicalLocations"] == [{"fullyQualifiedName": "q.lora_B"}]
    assert news["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "tuned", "a place in no file"
    assert "gone" in missing["message"]["text"]
    assert missing["partialFingerprints"] != news["partialFingerprints"]


def test_sarif_without_findings_is_a_whole_log(folder):
    (run,) = code_hosts.sarif([], [folder], "1.2")["runs"]
    assert run["results"] == []


def test_every_rule_can_be_told(folder):
    found = [Finding(r.code, r.name, r.severity, "x", "y", "z", "") for r in RULES.values()]
    rules = code_hosts.sarif(found, [folder], "0")["runs"][0]["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == sorted(RULES)
    assert all(len(rule["fullDescription"]["text"]) > 20 for rule in rules)


def test_annotations_escape_what_github_reads_as_syntax(folder):
    first, second = code_hosts.github([MISSING, NEWS], [folder])
    assert first.startswith(
        "::error file=tuned/adapter_model.safetensors,title=M302 factor-missing::q.lora_B: gone, 100 %25"
    )
    assert second.startswith("::notice file=tuned,title=T401 tied-apart::lm_head.weight: they%0Apart")
    assert "\n" not in first + second


def test_a_path_with_a_comma_or_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "a,b:c"
    odd.mkdir()
    (line,) = code_hosts.github([NEWS], [odd])
    assert "file=a%2Cb%3Ac,title" in line
