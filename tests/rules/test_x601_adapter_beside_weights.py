"""X601: an adapter in the base's folder."""

from __future__ import annotations

import pytest
from rule_cases import BOTH, adapter, findings, llama, only


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_a_file_of_an_adapter(tmp_path, name):
    base = llama(tmp_path / "base")
    (base / name).write_text("{}")
    finding = only(base, adapter(tmp_path / "adapter", BOTH), "X601")
    assert name in finding.where
    assert finding.severity == "warning"


def test_other_files(tmp_path):
    base = llama(tmp_path / "base")
    (base / "adapter_notes.md").write_text("")
    assert not findings(base, adapter(tmp_path / "adapter", BOTH), "X601")
