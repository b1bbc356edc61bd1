"""R808: files of a checkpoint that cannot be read."""

from __future__ import annotations

import pytest
from model_cases import edit
from run_cases import STATE, WEIGHTS, copied, found, only


@pytest.fixture
def folder(trained_run, tmp_path):
    return copied(trained_run / "checkpoint-4", tmp_path / "checkpoint-4")


def test_a_file_that_was_cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    finding = only(folder, "R808")
    assert (finding.severity, finding.where) == ("error", WEIGHTS)


@pytest.mark.parametrize(("name", "severity"), [(STATE, "error"), ("suture_ledger.json", "warning")])
def test_json_that_is_not_whole(folder, name, severity):
    (folder / name).write_text("{")
    finding = only(folder, "R808")
    assert (finding.severity, finding.where) == (severity, name)


def test_a_ledger_of_another_version(folder):
    """Nothing is broken, so it must not be told to delete the checkpoint."""
    edit(folder / "suture_ledger.json", lambda ledger: ledger.update(version=2))
    finding = only(folder, "R808")
    assert (finding.severity, finding.where) == ("warning", "suture_ledger.json")
    assert "version 2" in finding.found
    assert "Delete" not in finding.do


def test_weights_without_their_config(folder):
    (folder / "adapter_config.json").unlink()
    assert only(folder, "R808").where == WEIGHTS


def test_an_empty_optimiser(folder):
    (folder / "optimizer.pt").write_bytes(b"")
    assert only(folder, "R808").where == "optimizer.pt"


def test_a_whole_checkpoint(trained_run):
    assert not found(trained_run, "R808")
