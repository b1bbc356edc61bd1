"""Runs from config to proven adapter, and what is told when one breaks. On tiny models."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ENDS, WEIGHTS, Notes, Stop, config, make_home
from safetensors.torch import load_file, save_file

from suture.errors import AuditFailed, OutputError, OutputExists, SutureError, UsageError
from suture.training.run import resume, train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("home"))


def test_a_run_learns_and_every_stage_agrees(home: Path, tmp_path: Path):
    seen = Notes()
    found = train(config(home, tmp_path / "run", prove="full", eval_every=5, **ENDS), observer=seen)
    stages = {stage.stage: stage for stage in found.stages}
    assert list(stages) == ["before", "after", "reloaded", "merged"]
    assert stages["after"].train < stages["before"].train - 0.1
    for name in ("reloaded", "merged"):
        assert abs(stages[name].train - stages["after"].train) < 1e-5
        assert stages[name].eval == pytest.approx(stages["after"].eval, abs=1e-5)
    assert found.problems == ()
    assert {m.group for m in found.movements} == {"LoRA", "embeddings", "head"}
    assert all(m.absolute > 0 and not m.still_tensors for m in found.movements)
    (audit,) = seen.audits
    assert audit.ok
    assert audit.probed
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line and "eval_loss" not in line] == list(range(1, 11))
    assert [line["step"] for line in lines if "eval_loss" in line] == [5, 10]
    moved = [line["moved"] for line in lines if "moved" in line]
    assert len(moved) == 3  # at each checkpoint
    assert 0 < moved[0]["LoRA"]["relative"] < moved[-1]["LoRA"]["relative"]
    lines = [line for line in lines if "loss" in line]
    assert all(set(line["grad_norms"]) == {"LoRA", "embeddings", "head"} for line in lines)
    assert lines[3]["lrs"]["embeddings"] == pytest.approx(lines[3]["lrs"]["LoRA"] / 10)
    assert (tmp_path / "run" / "loss.svg").read_text().startswith("<svg")


def test_a_merge_that_breaks_something_is_told(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A merge of another adapter than the one that was trained."""
    from suture import pipeline

    honest = pipeline.merge

    def half(base: Any, adapter: Path, out: Any, **rest: Any) -> Any:
        other = tmp_path / "half"
        shutil.copytree(adapter, other)
        save_file({k: v * 0.5 for k, v in load_file(adapter / WEIGHTS).items()}, other / WEIGHTS)
        return honest(base, other, out, **rest)

    monkeypatch.setattr(pipeline, "merge", half)
    found = train(config(home, tmp_path / "run", prove="full"))
    assert len(found.problems) == 2
    assert all("merging the adapter" in problem for problem in found.problems)


def test_a_failed_audit_leaves_no_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from suture.training import build

    honest = build.inject

    def frozen(*arguments: Any) -> Any:
        model = honest(*arguments)
        model.get_base_model().model.layers[0].requires_grad_(False)
        return model

    monkeypatch.setattr(build, "inject", frozen)
    with pytest.raises(AuditFailed, match="frozen"):
        train(config(home, tmp_path / "run", tensorboard=True))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made(home: Path, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="the disk refused"):
        train(config(home, tmp_path / "file" / "run"))


def test_a_disk_that_is_full_is_told(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        seen = Stop(0, 4)
        seen.step = lambda m: patch.setattr(torch, "save", full) if m.step == 5 else None  # type: ignore[method-assign]
        with pytest.raises(OutputError, match="checkpoint of step 8"):
            train(config(home, tmp_path / "run"), observer=seen)
    assert resume(tmp_path / "run").step == 10


def test_a_run_folder_is_never_written_over(home: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(OutputExists):
        train(config(home, tmp_path / "run"))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_refused_run_leaves_no_folder(home: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="one tensor in this base"):
        train(config(home, tmp_path / "run", save=["lm_head"]))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_a_number_stops_the_run(home: Path, tmp_path: Path):
    with pytest.raises(SutureError, match="the loss is nan"):
        train(config(home, tmp_path / "run", lr=1e30, schedule="constant", warmup=0, max_grad_norm=1e30))


def test_a_second_ctrl_c_stops_at_once_and_an_echo_of_the_first_does_not(monkeypatch: pytest.MonkeyPatch):
    from suture.training import watch

    seconds = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: seconds[0])
    with watch.Signals().listening() as signals:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert signals.asked
        seconds[0] += 2
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
