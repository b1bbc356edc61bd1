"""suture train, suture resume"""

from __future__ import annotations

import importlib
import json
import os
import signal
from pathlib import Path

import pytest
from tiny import make_base, write_pairs

import suture.training
from suture.cli import _training
from suture.errors import MissingExtra
from suture.training.config import load

SETTINGS = """
base: {home}/base
out: {out}
data: {{train: {home}/pairs.jsonl, eval_share: 0.2, max_length: 64}}
adapter: {{rank: 4}}
steps: 4
save_every: 2
device: cpu
tensorboard: false
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    make_base(home / "base")
    write_pairs(home / "pairs.jsonl", 24)
    return home


@pytest.fixture
def file(home, tmp_path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(SETTINGS.format(home=home, out=tmp_path / "run"))
    return file


def test_a_run_is_told_from_audit_to_merge(run, file, tmp_path):
    result = run("train", file, "lr=1e-2", "adapter.rank=2")
    assert result.exit_code == 0, result.stderr
    assert "LoRA         28        2,048     F32            0.01" in result.stderr
    assert "every tensor gets a gradient" in result.stderr
    assert f"trained {tmp_path}/run/adapter: step 4 of 4" in result.stdout
    for words in ("before", "after training", "saved and reloaded", "merged", "suture merge"):
        assert words in result.stdout
    assert load(tmp_path / "run" / "run.yaml").adapter.rank == 2


def test_json(document, file, tmp_path):
    code, found = document("train", file, "prove=reload")
    assert code == 0
    assert [stage["stage"] for stage in found["stages"]] == ["before", "after", "reloaded"]
    assert found["adapter"] == str(tmp_path / "run" / "adapter")


def test_the_example_is_written_once_and_loads(run, tmp_path):
    file = tmp_path / "mine.yaml"
    assert run("train", file, "--init").exit_code == 0
    assert load(file).lr > 0
    again = run("train", file, "--init")
    assert again.exit_code == 21
    assert "there already" in again.stderr


def test_all_that_is_wrong_is_told_at_once(run, file, tmp_path):
    result = run("train", file, "lr=fast", "adaptr.rank=2", "steps=0")
    assert result.exit_code == 2
    for words in ("3 settings are wrong", "lr: 'fast'", "did you mean adapter?", "steps"):
        assert words in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "code", "words"),
    [
        ("base=nowhere/at-all", 10, "nowhere/at-all"),
        ("data.train=nothing.jsonl", 10, "nothing.jsonl"),
        ("save=[lm_head]", 2, "ties=untie"),
        ("adapter.targets=[no_such_module]", 2, "no_such_module"),
        ("save=[no_such_module]", 2, "no_such_module"),
        ("save=[embed_token]", 2, "did you mean embed_tokens"),
        ("adapter.targets=[q_proj,v_prj]", 2, "did you mean v_proj"),
        ("adapter.rank_pattern.qproj=8", 2, "adapter.rank_pattern: qproj; did you mean q_proj"),
        ("data.format=chat", 10, "messages"),
        ("device=cuda", 2, "no GPU"),
        ("precision=f16", 2, "f16 on a CPU"),
    ],
)
def test_bad_settings_leave_nothing(run, file, tmp_path, field, code, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = run("train", file, field)
    assert (result.exit_code, "Traceback" in result.stderr) == (code, False), result.stderr
    assert words in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_resumes(run, file, tmp_path, monkeypatch):
    told = _training.Display.step

    def stop(self, metrics):
        told(self, metrics)
        if metrics.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(_training.Display, "step", stop)
        halted = run("train", file)
    assert halted.exit_code == 130
    assert f"`suture resume {tmp_path}/run` goes on" in halted.stdout
    result = run("resume", tmp_path / "run", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["step"] == 4
    assert "resuming from checkpoint-3" in result.stderr


def test_a_refusal_lists_differences(document, run, file, tmp_path):
    run("train", file, "prove=off")
    checkpoint = tmp_path / "run" / "checkpoint-4"
    (checkpoint / "scheduler.pt").unlink()
    code, found = document("resume", tmp_path / "run")
    assert code == 14
    assert [d["group"] for d in found["differences"]] == ["files"]


def test_resume_wants_a_run(run, tmp_path):
    result = run("resume", tmp_path)
    assert result.exit_code == 10
    assert "run.yaml" in result.stderr


def test_a_broken_join_has_an_exit_code(run, file, monkeypatch):
    from suture.training import ends

    monkeypatch.setattr(ends, "SAME_F32", -1.0)
    result = run("train", file)
    assert result.exit_code == 3
    assert "changed the train loss" in result.stdout


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trl" else object())
    with pytest.raises(MissingExtra, match="not installed: trl"):
        importlib.reload(suture.training)
    monkeypatch.undo()
    importlib.reload(suture.training)
