"""Stop and resume: the same bytes, or a refusal that says what has changed. On tiny models."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ENDS, WEIGHTS, Notes, Stop, config, make_home, weights
from safetensors.torch import load_file, save_file
from tiny import write_pairs

from suture.errors import ResumeRefused
from suture.training import ledger as ledgers
from suture.training.config import RunConfig, load
from suture.training.run import resume, train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("home"))


STRAIGHT = """
import os, signal, sys
from pathlib import Path
from suture.training.config import RunConfig, load
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


def test_a_stop_after_the_last_step_still_gives_the_proof(home: Path, tmp_path: Path):
    """Killed between the last checkpoint and the adapter's folder: no step is made again."""
    straight = train(config(home, tmp_path / "run", prove="reload"))
    assert straight.adapter is not None
    before = weights(straight.adapter)
    shutil.rmtree(straight.adapter)
    (tmp_path / "run" / "outcome.json").unlink()
    resumed = resume(tmp_path / "run")
    assert resumed.adapter is not None
    assert weights(resumed.adapter) == before
    assert (resumed.step, resumed.stages, resumed.curve) == (10, straight.stages, straight.curve)


def test_a_run_that_goes_on_from_an_adapter_resumes_too(home: Path, tmp_path: Path):
    """What was inherited stays inherited: run.yaml tells what trains, and a resumption converts nothing."""
    first = train(config(home, tmp_path / "first"))
    assert first.adapter is not None
    settings = config(home, tmp_path / "x").model_dump(exclude={"adapter", "out", "save"})
    plain = RunConfig.model_validate({**settings, "out": tmp_path / "straight"})
    straight = train(plain, continue_from=str(tmp_path / "first"))
    halted = train(
        plain.model_copy(update={"out": tmp_path / "halted"}),
        continue_from=str(first.adapter),
        observer=Stop(signal.SIGTERM, 5),
    )
    assert halted.adapter is None
    resumed = resume(tmp_path / "halted")
    assert resumed.adapter is not None
    assert straight.adapter is not None
    assert weights(resumed.adapter) == weights(straight.adapter)
    assert load(tmp_path / "halted" / "run.yaml").adapter.rank == 4
    ledger = ledgers.read(resumed.adapter)
    assert ledger is not None
    assert [a.conversions for a in ledger.lineage] == [()]


def test_a_run_is_stopped_twice(home: Path, tmp_path: Path):
    """A resumption that is stopped resumes again, and the settings of a run stay as they were."""
    straight = train(config(home, tmp_path / "straight"))
    train(config(home, tmp_path / "run"), observer=Stop(signal.SIGTERM, 2))
    settings = (tmp_path / "run" / "run.yaml").read_bytes()
    resume(tmp_path / "run", observer=Stop(signal.SIGTERM, 6))
    again = resume(tmp_path / "run")
    assert (tmp_path / "run" / "run.yaml").read_bytes() == settings
    assert again.adapter is not None
    assert straight.adapter is not None
    assert weights(again.adapter) == weights(straight.adapter)


def test_in_bf16_a_stop_after_the_last_step_gives_the_proof_too(home: Path, tmp_path: Path):
    """Ends in float32 on a base in bf16: the audit needs the autocast that the Trainer would have made."""
    train(config(home, tmp_path / "run", precision="bf16", **ENDS))
    assert resume(tmp_path / "run").step == 10


def test_another_number_of_processes_does_not_resume(broken: Path):
    path = newest(broken) / ledgers.NAME
    data = json.loads(path.read_text())
    shutil.copy(newest(broken) / "rng_state.pth", newest(broken) / "rng_state_1.pth")
    data["files"]["rng_state_1.pth"] = data["files"]["rng_state.pth"]
    path.write_text(json.dumps(data))
    with pytest.raises(ResumeRefused, match="1 processes resume what 2 have trained"):
        resume(broken)


def test_another_version_is_told(broken: Path):
    path = newest(broken) / ledgers.NAME
    data = json.loads(path.read_text())
    data["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(data))
    seen = Notes()
    resume(broken, observer=seen)
    assert any("torch 1.0 →" in text for text in seen.texts)
