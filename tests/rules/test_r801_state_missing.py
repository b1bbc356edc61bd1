"""R801: what a resumption reads."""

from __future__ import annotations

import pytest
from model_cases import edit
from run_cases import STATE, copied, found, only, train
from tiny import make_base


@pytest.fixture
def folder(trained_run, tmp_path):
    return copied(trained_run / "checkpoint-4", tmp_path / "checkpoint-4")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_part_of_the_state(folder, name):
    (folder / name).unlink()
    finding = only(folder, "R801")
    assert (finding.severity, finding.where) == ("warning", name)
    assert f"{name} is not there, though 4 of 6 steps" in finding.found


def test_checkpoints_without_the_optimiser_on_purpose(tmp_path, quiet_torch):
    run = train(make_base(tmp_path / "base"), tmp_path / "run", save_only_model=True, max_steps=3)
    (finding,) = found(run, "R801")
    assert (finding.severity, finding.where) == ("info", "optimizer.pt"), "the last one is complete: its run is over"


def strip(folder, *stems):
    for path in [p for p in folder.iterdir() if p.name.startswith(stems)]:
        path.unlink()


def test_a_choice_is_told_once_a_run(trained_run, tmp_path):
    run = copied(trained_run, tmp_path / "run")
    for n in (2, 4, 6):
        strip(run / f"checkpoint-{n}", "optimizer", "scheduler", "rng_state")
    assert only(run, "R801").severity == "info"


def test_one_checkpoint_of_several_without_state(trained_run, tmp_path):
    """The others have theirs, so this was no choice."""
    run = copied(trained_run, tmp_path / "run")
    strip(run / "checkpoint-4", "optimizer", "scheduler", "rng_state")
    finding = only(run, "R801")
    assert finding.severity == "warning"
    assert "optimizer.pt, rng_state.pth, scheduler.pt are not there" in finding.found


def test_a_checkpoint_alone_without_any_state(folder):
    strip(folder, "optimizer", "scheduler", "rng_state")
    assert only(folder, "R801").severity == "info"


def test_a_checkpoint_alone_with_a_part_of_the_state(folder):
    strip(folder, "optimizer", "scheduler")
    finding = only(folder, "R801")
    assert finding.severity == "warning"
    assert "optimizer.pt, scheduler.pt are not there" in finding.found


def test_no_trainer_state(folder):
    (folder / STATE).unlink()
    assert only(folder, "R801").where == STATE


def test_what_the_other_checkpoints_have(trained_run, tmp_path):
    run = copied(trained_run, tmp_path / "run")
    for n in (2, 6):
        (run / f"checkpoint-{n}" / "scaler.pt").write_bytes(b"PK")
    assert only(run, "R801").where == "scaler.pt"


def test_a_run_that_is_over(folder):
    (folder / "optimizer.pt").unlink()
    edit(folder / STATE, lambda s: s.update(max_steps=4))
    assert not found(folder, "R801")


def test_an_optimiser_of_deepspeed(folder):
    (folder / "optimizer.pt").unlink()
    (folder / "global_step4").mkdir()
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert not found(folder, "R801")
