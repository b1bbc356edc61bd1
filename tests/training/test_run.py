"""Runs from config to proven adapter: stops, resumes, continued adapters, new tokens, ties. On tiny models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_base, write_pairs

from suture.errors import OutputExists, ResumeRefused, SutureError, UsageError
from suture.training import ledger as ledgers
from suture.training.config import RunConfig
from suture.training.run import Silent, resume, train
from suture.values import Audit, StepMetrics

ENDS = {"save": ["embed_tokens", "lm_head"], "ties": "untie"}
WEIGHTS = "adapter_model.safetensors"


class Stop(Silent):
    """Sends this process a signal at a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.at = number, step

    def step(self, metrics: StepMetrics) -> None:
        if metrics.step == self.at:
            os.kill(os.getpid(), self.number)


class Notes(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.audits: list[Audit] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def audit(self, found: Audit) -> None:
        self.audits.append(found)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    make_base(folder / "tied")
    make_base(folder / "untied", tie=False)
    write_pairs(folder / "pairs.jsonl", 40)
    return folder


def config(home: Path, out: Path, base: str = "tied", **settings: Any) -> RunConfig:
    values = {
        "base": str(home / base),
        "out": out,
        "data": {"train": str(home / "pairs.jsonl"), "eval_share": 0.2, "max_length": 64},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "lr": 1e-2,
        "steps": 10,
        "save_every": 4,
        "prove": "off",
        "tensorboard": False,
        "device": "cpu",
    }
    return RunConfig.model_validate({**values, **settings})


def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


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


STRAIGHT = """
import os, signal, sys
from pathlib import Path
from suture.training.config import RunConfig
from suture.training.run import Silent, train

class Stop(Silent):
    def step(self, metrics):
        if metrics.step == int(sys.argv[3]):
            os.kill(os.getpid(), int(sys.argv[2]))

train(RunConfig.model_validate_json(Path(sys.argv[1]).read_text(), strict=False), observer=Stop())
"""


def stopped(home: Path, out: Path, number: int, step: int, **settings: Any) -> int:
    """A run in a process of its own that gets a signal at a step; its exit code."""
    file = out.with_suffix(".json")
    file.write_text(config(home, out, **settings).model_dump_json())
    arguments = [sys.executable, "-W", "ignore", "-c", STRAIGHT, str(file), str(int(number)), str(step)]
    return subprocess.run(arguments, check=False, capture_output=True).returncode


@pytest.mark.parametrize("settings", [{}, ENDS], ids=["lora", "lora-and-ends"])
def test_stop_and_resume_gives_the_same_bytes(home: Path, tmp_path: Path, settings: dict[str, Any]):
    """Three stop points: a signal between checkpoints, one on a checkpoint, and a kill between checkpoints."""
    straight = train(config(home, tmp_path / "straight", **settings))
    assert straight.adapter is not None
    for name, number, step in (("term", signal.SIGTERM, 2), ("int", signal.SIGINT, 8)):
        run = tmp_path / name
        halted = train(config(home, run, **settings), observer=Stop(number, step))
        assert halted.adapter is None
        assert halted.step < 10
        assert halted.checkpoint is not None
        assert halted.checkpoint.is_dir()
    assert stopped(home, tmp_path / "kill", signal.SIGKILL, 6, **settings) == -signal.SIGKILL
    assert not (tmp_path / "kill" / "adapter").exists()
    for name in ("term", "int", "kill"):
        resumed = resume(tmp_path / name)
        assert resumed.step == 10
        assert resumed.adapter is not None
        assert weights(resumed.adapter) == weights(straight.adapter)
        assert resumed.curve == straight.curve
        assert resumed.stages == straight.stages
        ours, theirs = (ledgers.read(found.adapter) for found in (resumed, straight) if found.adapter)
        assert ours is not None
        assert theirs is not None
        assert ours.n_tokens > 0
        assert (ours.sha256, ours.n_tokens, ours.metrics) == (theirs.sha256, theirs.n_tokens, theirs.metrics)


@pytest.fixture(scope="module")
def halted(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at step 6; tests copy it before they break it."""
    run = tmp_path_factory.mktemp("halted") / "run"
    train(config(home, run), observer=Stop(signal.SIGTERM, 5))
    return run


@pytest.fixture
def broken(halted: Path, tmp_path: Path) -> Path:
    shutil.copytree(halted, tmp_path / "run")
    return tmp_path / "run"


def newest(run: Path) -> Path:
    return run / "checkpoint-6"


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop_tensors(run: Path) -> str:
    tensors = load_file(newest(run) / WEIGHTS)
    save_file(dict(list(tensors.items())[:-6]), newest(run) / WEIGHTS)
    return "LoRA of .* missing from the file"


def add_tensor(run: Path) -> str:
    tensors = load_file(newest(run) / WEIGHTS)
    name, value = next(iter(tensors.items()))
    save_file({**tensors, name.replace("layers.0", "layers.9"): value.clone()}, newest(run) / WEIGHTS)
    return "does not know it"


def other_alpha(run: Path) -> str:
    edit_json(newest(run) / "adapter_config.json", lora_alpha=64)
    return "lora_alpha is 64, but was 8"


def flip_bit(run: Path) -> str:
    raw = bytearray(weights(newest(run)))
    raw[-1] ^= 1
    (newest(run) / WEIGHTS).write_bytes(raw)
    return "other bytes"


def reordered_optimiser(run: Path) -> str:
    path = newest(run) / "optimizer.pt"
    state = torch.load(path, weights_only=True)
    state["param_groups"][0]["params"].reverse()
    torch.save(state, path)
    return "optimizer.pt has other bytes"


def no_optimiser(run: Path) -> str:
    (newest(run) / "optimizer.pt").unlink()
    return "optimizer.pt is missing"


def other_rate(run: Path) -> str:
    path = run / "run.yaml"
    path.write_text(path.read_text().replace("lr: 0.01", "lr: 0.02", 1))
    return "lr is 0.02, but was 0.01"


def other_data(run: Path) -> str:
    path = run / "run.yaml"
    other = run / "other.jsonl"
    write_pairs(other, 41)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"  train: {other}" if line.startswith("  train:") else line for line in lines))
    ledger = newest(run) / ledgers.NAME
    data = json.loads(ledger.read_text())
    data["config"]["data"]["train"] = str(other)
    ledger.write_text(json.dumps(data))
    return "the data is not the one"


@pytest.mark.parametrize(
    "breaks",
    [drop_tensors, add_tensor, other_alpha, flip_bit, reordered_optimiser, no_optimiser, other_rate, other_data],
)
def test_a_changed_checkpoint_does_not_resume(broken: Path, breaks: Any):
    words = breaks(broken)
    before = sorted(p.name for p in broken.rglob("*"))
    with pytest.raises(ResumeRefused, match=words):
        resume(broken)
    assert sorted(p.name for p in broken.rglob("*")) == before


def test_a_base_that_changed_does_not_resume(home: Path, tmp_path: Path):
    base = tmp_path / "base"
    shutil.copytree(home / "tied", base)
    train(config(home, tmp_path / "run").model_copy(update={"base": str(base)}), observer=Stop(signal.SIGTERM, 2))
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ResumeRefused, match="the base is not the one"):
        resume(tmp_path / "run")


def test_an_unfinished_checkpoint_is_passed_over(broken: Path):
    (newest(broken) / ledgers.NAME).unlink()
    seen = Notes()
    assert resume(broken, observer=seen).step == 10
    assert any("checkpoint-6 was not finished" in text for text in seen.texts)


def test_optimiser_state_goes_where_its_name_is(broken: Path, halted: Path, monkeypatch: pytest.MonkeyPatch):
    """The order of the run's groups may change; the moments follow the names."""
    from suture.training import trainer

    straight = resume(broken)
    shutil.rmtree(broken)
    shutil.copytree(halted, broken)
    named = trainer.named_groups

    def reversed_groups(*arguments: Any) -> list[dict[str, Any]]:
        return [{**group, "params": group["params"][::-1]} for group in named(*arguments)]

    monkeypatch.setattr(trainer, "named_groups", reversed_groups)
    with pytest.raises(ResumeRefused, match="other positions"):
        resume(broken)
    assert straight.step == 10


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
