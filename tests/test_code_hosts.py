"""SARIF and GitHub's annotations: every finding, its level, its file from the current folder, its place."""

from __future__ import annotations

import json
import os

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


def test_the_line_of_a_field(folder):
    (folder / "adapter_config.json").write_text(
        '{\n  "peft_type": "LORA",\n  "rank_pattern": {\n    "r": 1\n  },\n  "r": 8\n}\n'
    )
    places = ["r", "rank_pattern", "peft_type, r", "nothing", ""]
    found = [Finding("M304", "rank-mismatch", "error", f"adapter_config.json: {p}", "x", "", "") for p in places]
    results = code_hosts.sarif(found, [folder], "0")["runs"][0]["results"]
    assert [r["locations"][0]["physicalLocation"]["region"]["startLine"] for r in results] == [6, 3, 2, 1, 1]
    assert "line=3,title" in code_hosts.github(found, [folder])[1]


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
        "::error file=tuned/adapter_model.safetensors,line=1,title=M302 factor-missing::q.lora_B: gone, 100 %25"
    )
    assert second.startswith("::notice file=tuned,line=1,title=T401 tied-apart::lm_head.weight: they%0Apart")
    assert "\n" not in first + second


def test_a_place_that_is_no_path(folder):
    """Names of tensors can be longer than a file system allows."""
    long = Finding("M303", "shape-mismatch", "error", "a." * 3000, "f", "e", "d")
    (line,) = code_hosts.github([long], [folder])
    assert line.startswith("::error file=tuned,")
    code_hosts.sarif([long], [folder], "0")


def test_a_link_is_called_by_its_own_name(tmp_path, monkeypatch):
    """The Hub's cache is made of links to files that are named by their hash."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "3f2a").touch()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "adapter_model.safetensors").symlink_to("../blobs/3f2a")
    (line,) = code_hosts.github([MISSING], [tmp_path / "snapshot"])
    assert "file=snapshot/adapter_model.safetensors," in line


def test_a_path_with_a_comma_or_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "a,b:c"
    odd.mkdir()
    (line,) = code_hosts.github([NEWS], [odd])
    assert "file=a%2Cb%3Ac,line=1,title" in line


def test_file_names_that_are_not_text_keep_their_bytes(folder):
    name = os.fsdecode(b"\xff\x1b.safetensors")
    (folder / name).touch()
    finding = Finding("X602", "weights-left-behind", "error", name, "x", "", "")
    (result,) = code_hosts.sarif([finding], [folder], "0")["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "tuned/%FF%1B.safetensors"


def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "config.json")
    finding = Finding("W701", "tie-flags-contradict", "error", "config.json: r", "x", "", "")
    assert "line=1," in code_hosts.github([finding], [folder])[0]
