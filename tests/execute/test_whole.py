"""Files that a merge does not change: copied, cloned, or linked if asked; never written to."""

import errno
import fcntl
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from execute.made_plans import contents, make_pair, make_plan

from suture import execute
from suture.errors import OutputError
from suture.execute import staging, whole
from suture.execute.claim import claiming
from suture.values import Running, Verdict

GOOD = Verdict(True, ())


@pytest.fixture
def pair(tmp_path):
    return make_pair(tmp_path / "in")


@pytest.fixture
def plan(pair):
    """The adapter is on the tensors of two of three files, and headers are as in the base."""
    made = make_plan(pair)
    last = max(op.file for op in made.operations)
    operations = [replace(op, terms=(), why="copy") if op.file == last else op for op in made.operations]
    files = [replace(file, header=beginning(pair.folder / "base" / file.name)) for file in made.files]
    return replace(made, operations=tuple(operations), files=tuple(files))


def beginning(path):
    with path.open("rb") as stream:
        first = stream.read(8)
        return (first + stream.read(int.from_bytes(first, "little"))).decode("latin-1")


def merged(plan, pair, out, **running):
    return execute.publish(execute.run(plan, pair.inputs, out, Running(**running)), GOOD)


def same(plan, pair):
    return whole.whole_files(plan, pair.inputs, tell=False)


def test_a_file_whose_tensors_stay_is_found(plan, pair):
    changed = {op.file for op in plan.operations if not op.is_copy}
    assert 0 < len(same(plan, pair)) < len(plan.files)
    assert set(same(plan, pair)) == {file.name for file in plan.files} - changed


def test_another_header_is_another_file_and_that_is_told(plan, pair, caplog):
    (name,) = list(same(plan, pair))[:1]
    other = [replace(f, header=f.header[:-1] + "\t") if f.name == name else f for f in plan.files]
    assert name not in whole.whole_files(replace(plan, files=tuple(other)), pair.inputs, tell=True)
    assert f"{name}: no tensor changes, but its header is written in another way" in caplog.text


def test_tensors_in_another_order_are_another_file(plan, pair):
    """Two of the same size that change places: the header says so."""
    (name,) = list(same(plan, pair))[:1]
    moved = [op for op in plan.operations if op.file == name]
    first, second = moved[0], moved[-1]
    assert first.source.tensor.begin < second.source.tensor.begin
    header = (
        next(f.header for f in plan.files if f.name == name)
        .replace(first.tensor, "\0")
        .replace(second.tensor, first.tensor)
    )
    other = [replace(f, header=header.replace("\0", second.tensor)) if f.name == name else f for f in plan.files]
    assert name not in whole.whole_files(replace(plan, files=tuple(other)), pair.inputs, tell=False)


def test_links_share_the_file_and_the_rest_is_as_without(plan, pair, tmp_path):
    before = contents(pair.folder / "base")
    plain = contents(merged(plan, pair, tmp_path / "plain"))
    out = merged(plan, pair, tmp_path / "out", link=True)
    found = contents(out)
    for name in same(plan, pair):
        assert (out / name).samefile(pair.folder / "base" / name)
    receipt = "suture_receipt.json"
    assert {n: b for n, b in found.items() if n != receipt} == {n: b for n, b in plain.items() if n != receipt}
    assert b'"linked": [' in found[receipt]
    assert contents(pair.folder / "base") == before


def test_hashes_are_those_of_the_files(plan, pair, tmp_path):
    staged = execute.run(plan, pair.inputs, tmp_path / "out", Running(link=True, hash_inputs=True))
    for sums, folder in ((staged.receipt.sha256, staged.folder), (staged.receipt.base_sha256, pair.folder / "base")):
        assert sums
        for name, found in sums.items():
            assert found == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert set(staged.receipt.base_sha256) == {shard.name for shard in pair.inputs.checkpoint.shards}
    execute.abandon(staged)


def test_without_hashes_only_small_files_have_one(plan, pair, tmp_path):
    staged = execute.run(plan, pair.inputs, tmp_path / "out", Running(hashes=False))
    assert not {file.name for file in plan.files} & set(staged.receipt.sha256)
    execute.abandon(staged)


def test_a_link_that_an_interrupted_run_left_is_never_written_to(plan, pair, tmp_path, monkeypatch):
    """Killed after linking; the next run copies. The base keeps its bytes and its date."""
    monkeypatch.setattr(execute, "make_receipt", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
    monkeypatch.setattr("suture.execute.claim.discard", lambda claimed: os.close(claimed.lock))
    with pytest.raises(RuntimeError):
        execute.run(plan, pair.inputs, tmp_path / "out", Running(link=True))
    monkeypatch.undo()
    dates = {name: path.stat().st_mtime_ns for name, path in same(plan, pair).items()}
    assert any(path.stat().st_nlink > 1 for path in same(plan, pair).values())
    out = merged(plan, pair, tmp_path / "out")
    assert {name: path.stat().st_mtime_ns for name, path in same(plan, pair).items()} == dates
    assert not any((out / name).samefile(path) for name, path in same(plan, pair).items())


def test_another_file_system_is_told(tmp_path):
    refused = pytest.raises(OutputError, match=r"(?s)on another file system.*Leave --link out")
    with claiming(tmp_path / "out", "x" * 64) as claimed, refused:
        whole.require_linkable(claimed, {"model.safetensors": Path("/proc/version")})


def test_a_file_is_cloned_where_the_file_system_can(plan, pair, tmp_path, monkeypatch):
    cloned, written = [], []
    pwrite = os.pwrite

    def ioctl(descriptor, request, source):
        assert request == staging._FICLONE
        cloned.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        with os.fdopen(os.dup(source), "rb") as one, os.fdopen(os.dup(descriptor), "r+b") as other:
            shutil.copyfileobj(one, other)

    def note(descriptor, data, offset):
        written.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        return pwrite(descriptor, data, offset)

    expected = contents(merged(plan, pair, tmp_path / "plain"))
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(os, "pwrite", note)
    assert contents(merged(plan, pair, tmp_path / "out")) == expected
    assert sorted(cloned) == sorted(same(plan, pair))
    for path in cloned:
        assert written.count(path) == 1  # the header, before


def test_a_clone_that_is_refused_is_a_copy(plan, pair, tmp_path, monkeypatch):
    def ioctl(*_):
        raise OSError(errno.EOPNOTSUPP, "no")

    expected = contents(merged(plan, pair, tmp_path / "plain"))
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert contents(merged(plan, pair, tmp_path / "out")) == expected
