"""An output appears by one rename, with a good verdict, or not at all."""

import os
import shutil
from pathlib import Path

import pytest
from execute.made_plans import contents, make_pair, make_plan

from suture import execute
from suture.errors import NotVerified, OutputError, OutputExists
from suture.values import Check, TensorVerdict, Verdict

GOOD = Verdict(True, (Check("replay", True, 3),))
BAD = Verdict(False, (Check("replay", False, 3, "1 of 3"),), (TensorVerdict("w0", "wrong", 1, 3, 0.5, None),))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "made" / "out"


@pytest.fixture
def staged(tmp_path, out):
    pair = make_pair(tmp_path / "in", n_shards=1)
    staged = execute.run(make_plan(pair), pair.inputs, out)
    yield staged
    if staged.folder.exists():
        execute.abandon(staged)


def left(out):
    return sorted(p.name for p in out.parent.iterdir())


def test_a_good_verdict_lets_the_output_appear(staged, out):
    before = contents(staged.folder)
    assert execute.publish(staged, GOOD) == out
    assert contents(out) == before
    assert left(out) == ["out"]


def test_a_bad_verdict_removes_it_and_says_why(staged, out):
    with pytest.raises(NotVerified, match=r"replay: 1 of 3; w0 is wrong") as error:
        execute.publish(staged, BAD)
    assert error.value.verdict is BAD
    assert left(out) == []


def test_an_abandoned_output_is_gone(staged, out):
    execute.abandon(staged)
    assert left(out) == []


def test_an_output_that_appeared_meanwhile_is_not_touched(staged, out):
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(OutputExists):
        execute.publish(staged, GOOD)
    assert contents(out) == {"mine": b"mine"}
    assert staged.folder.exists()


@pytest.mark.parametrize("change", [shutil.rmtree, lambda f: (f / "suture_receipt.json").write_text("{}")])
def test_what_is_not_what_was_staged_is_not_published(staged, out, change):
    change(staged.folder)
    with pytest.raises(OutputError, match="gone, or is another merge's"):
        execute.publish(staged, GOOD)
    assert not out.exists()


def test_a_rename_that_fails_keeps_what_was_staged(staged, out, monkeypatch):
    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(type(out), "rename", refuse)
        with pytest.raises(OutputError, match="Permission denied"):
            execute.publish(staged, GOOD)
    assert not out.exists()
    assert execute.publish(staged, GOOD) == out


def test_the_rename_is_made_durable(staged, out, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").readlink()), fsync(fd)))
    execute.publish(staged, GOOD)
    assert out.parent in synced
