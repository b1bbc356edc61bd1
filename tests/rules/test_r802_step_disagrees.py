"""R802: the step, told in several places."""

from __future__ import annotations

import pytest
from model_cases import edit
from run_cases import STATE, copied, found, only


@pytest.fixture
def folder(trained_run, tmp_path):
    return copied(trained_run / "checkpoint-4", tmp_path / "checkpoint-4")


def test_a_folder_that_was_renamed(folder):
    finding = only(folder.rename(folder.with_name("checkpoint-5")), "R802")
    assert (finding.severity, finding.where) == ("error", f"{STATE}: global_step")
    assert "4, and the folder is checkpoint-5" in finding.found


def test_the_state_of_another_checkpoint(trained_run, folder):
    (folder / STATE).write_bytes((trained_run / "checkpoint-2" / STATE).read_bytes())
    assert {f.where for f in found(folder, "R802")} == {f"{STATE}: global_step", "suture_ledger.json: step"}


def test_a_log_from_the_future(trained_run, folder):
    later = (trained_run / "checkpoint-6" / STATE).read_text()
    (folder / STATE).write_text(later.replace('"global_step": 6', '"global_step": 4'))
    assert only(folder, "R802").where == f"{STATE}: log_history"


def test_more_steps_than_there_are(folder):
    edit(folder / STATE, lambda s: s.update(max_steps=3))
    assert only(folder, "R802").severity == "warning"


def test_a_step_without_a_log(folder):
    edit(folder / STATE, lambda s: s.update(log_history=s["log_history"][:2]))
    assert not found(folder, "R802")


def test_a_log_that_is_none(folder):
    edit(folder / STATE, lambda s: s.update(log_history=[None, {"step": "x"}]))
    assert not found(folder, "R802")
