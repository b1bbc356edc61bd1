"""X601: an adapter in the base's folder."""

from __future__ import annotations

import shutil

import model_cases as models
import pytest
from rule_cases import BOTH, adapter, findings, llama, only

from suture.pipeline import Reading, load_case
from suture.rules.x601_adapter_beside_weights import RULE
from suture.values import Options


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_a_file_of_an_adapter(tmp_path, name):
    base = llama(tmp_path / "base")
    (base / name).write_text("{}")
    finding = only(base, adapter(tmp_path / "adapter", BOTH), "X601")
    assert name in finding.where
    assert finding.severity == "warning"


def test_the_rule_opens_no_folder(tmp_path):
    base, tuned = llama(tmp_path / "base"), adapter(tmp_path / "adapter", BOTH)
    (base / "adapter_config.json").write_text("{}")
    case = load_case(base, tuned, Options(), Reading())
    shutil.rmtree(tmp_path)
    assert list(RULE.pair(case))


def test_other_files(tmp_path):
    base = llama(tmp_path / "base")
    (base / "adapter_notes.md").write_text("")
    assert not findings(base, adapter(tmp_path / "adapter", BOTH), "X601")


def test_beside_a_finished_model(tmp_path):
    adapter(llama(tmp_path / "model"), BOTH)
    finding = models.only(tmp_path / "model", "X601")
    assert (finding.severity, finding.where) == ("error", "adapter_config.json")
    (tmp_path / "model" / "adapter_config.json").unlink()
    assert models.only(tmp_path / "model", "X601").severity == "warning"
    (tmp_path / "model" / "adapter_model.safetensors").unlink()
    assert not models.found(tmp_path / "model", "X601")
