"""A run's folder: claimed once, locked by one process, written whole or not at all, and rotated without loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from suture.errors import InputError, OutputExists, OutputLocked
from suture.training import folder as folders


def test_a_new_or_empty_folder_is_claimed_and_a_used_one_is_not(tmp_path):
    run = tmp_path / "a" / "run"
    folders.claim(run)
    folders.claim(run)
    with folders.locked(run):
        folders.claim(run)  # the lock alone is no content
    (run / folders.CONFIG).write_text("x")
    with pytest.raises(OutputExists, match="the run folder has files"):
        folders.claim(run)
    with pytest.raises(OutputExists):
        folders.claim(run / folders.CONFIG)


def test_only_a_folder_without_a_run_is_taken_back(tmp_path):
    empty, used = tmp_path / "empty", tmp_path / "used"
    for run in (empty, used):
        folders.claim(run)
        (run / folders.LOCK).touch()
    (empty / "tensorboard").mkdir()
    (used / folders.CONFIG).write_text("x")
    folders.unclaim(empty)
    folders.unclaim(used)
    assert (empty.exists(), used.exists()) == (False, True)


LOCK = """
import sys
from pathlib import Path
from suture.errors import OutputLocked
from suture.training import folder
try:
    with folder.locked(Path(sys.argv[1])):
        print("mine")
except OutputLocked as error:
    print(error.found)
"""


def test_a_second_process_does_not_get_the_lock(tmp_path):
    def ask():
        command = [sys.executable, "-c", LOCK, str(tmp_path)]
        source = str(Path(folders.__file__).parents[2])
        env = {**os.environ, "PYTHONPATH": source}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()

    with folders.locked(tmp_path):
        assert ask() == "another process trains in this folder"
        with pytest.raises(OutputLocked), folders.locked(tmp_path):
            pass
    assert ask() == "mine"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    folders.put_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        folders.put_json(path, {"b": 2})
    assert json.loads(path.read_text()) == {"a": [1]}


def test_json_has_no_nan(tmp_path):
    folders.put_json(tmp_path / "file.json", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": None, "b": [None, 1.5]}


def test_metrics_are_cut_back_to_the_step_that_is_resumed(tmp_path):
    path = tmp_path / folders.METRICS
    assert folders.lines_until(path, 3) == []
    for step in (1, 2, 3, 4):
        folders.append_line(path, {"step": step, "loss": 1 / step})
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # a crash
    kept = folders.lines_until(path, 3)
    assert [line["step"] for line in kept] == [1, 2, 3]
    folders.put_lines(path, kept)
    assert [json.loads(line) for line in path.read_text().splitlines()] == kept
    folders.append_line(path, {"step": 4})
    assert [line["step"] for line in folders.lines_until(path, 9)] == [1, 2, 3, 4]


def make(run, *steps):
    for step in steps:
        folders.checkpoint(run, step).mkdir()
        (folders.checkpoint(run, step) / folders.LEDGER).write_text("x")


def test_checkpoints_are_ordered_by_number(tmp_path):
    make(tmp_path, 10, 9, 100)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [path.name for path in folders.checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


@pytest.mark.parametrize(
    ("keep", "spare", "left"),
    [(2, None, [3, 4]), (1, None, [4]), (9, None, [1, 2, 3, 4]), (2, 1, [1, 3, 4]), (1, 4, [3, 4]), (1, 7, [4])],
)
def test_rotation_keeps_the_newest_and_spares_one(tmp_path, keep, spare, left):
    make(tmp_path, 1, 2, 3, 4, 5)
    (folders.checkpoint(tmp_path, 5) / folders.LEDGER).unlink()  # was never finished
    folders.rotate(tmp_path, keep, folders.checkpoint(tmp_path, spare) if spare else None)
    assert folders.checkpoints(tmp_path) == tuple(folders.checkpoint(tmp_path, step) for step in left)
    assert len(list(tmp_path.iterdir())) == len(left)


def test_removal_renames_first_and_finishes_an_interrupted_one(tmp_path, monkeypatch):
    make(tmp_path, 1)
    folder = folders.checkpoint(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(folders.shutil, "rmtree", lambda *_, **__: None)  # killed in the middle
        folders.remove(folder)
    assert folders.checkpoints(tmp_path) == ()
    make(tmp_path, 1)
    folders.remove(folder)
    assert list(tmp_path.iterdir()) == []
    folders.remove(folder)


def test_publishing_replaces_what_was_there(tmp_path):
    staged, final = tmp_path / ".adapter", tmp_path / "adapter"
    for content in ("old", "new"):
        staged.mkdir()
        (staged / "file").write_text(content)
        folders.publish(staged, final)
        assert (final / "file").read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_that_no_run_has_written(tmp_path):
    with pytest.raises(InputError, match=r"there is no run\.yaml"):
        folders.require_run(tmp_path)
    (tmp_path / folders.CONFIG).write_text("x")
    folders.require_run(tmp_path)
