"""The staging folder: who may write, what is refused, what is left behind, and what a rerun finds."""

import errno
import fcntl
import logging
import os
import re
import shutil
import stat
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from execute.made_plans import contents, make_pair, make_plan

import suture
from suture import execute
from suture.errors import DiskFull, InputError, OutputError, OutputExists, OutputLocked
from suture.execute import claim, hashing, staging
from suture.planning.codec import plan_id
from suture.values import Running, SideFile, Verdict

GOOD = Verdict(True, ())


@pytest.fixture
def pair(tmp_path):
    return make_pair(tmp_path / "in", n_shards=2)


@pytest.fixture
def plan(pair):
    return make_plan(pair)


@pytest.fixture
def out(tmp_path):
    (tmp_path / "made").mkdir()
    return tmp_path / "made" / "out"


def left(out: Path) -> list[str]:
    """What stands in the output's parent."""
    return sorted(p.name for p in out.parent.iterdir())


def test_a_run_leaves_one_hidden_folder_and_publishing_none(pair, plan, out):
    staged = execute.run(plan, pair.inputs, out)
    assert left(out) == [".out.suture"]
    assert staged.folder == out.parent / ".out.suture" / plan_id(plan)[:16]
    execute.publish(staged, GOOD)
    assert left(out) == ["out"]


def test_an_output_that_exists_is_refused_and_untouched(pair, plan, out):
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for refuse in (lambda: execute.check_output(out), lambda: execute.run(plan, pair.inputs, out)):
        with pytest.raises(OutputExists, match="has files"):
            refuse()
    assert contents(out.parent) == {"out/mine.txt": b"mine"}


def test_a_file_in_the_way_is_refused(pair, plan, out):
    out.write_text("mine")
    with pytest.raises(OutputExists, match="a file of that name"):
        execute.run(plan, pair.inputs, out)
    assert contents(out.parent) == {"out": b"mine"}


def test_an_empty_folder_and_missing_parents_are_fine(pair, plan, out):
    out.mkdir()
    deep = out.parent / "a" / "b" / "out"
    for target in (out, deep):
        execute.publish(execute.run(plan, pair.inputs, target), GOOD)
    assert contents(out) == contents(deep)


def test_a_symlink_to_an_empty_folder_is_filled(pair, plan, out):
    (out.parent / "real").mkdir()
    out.symlink_to("real")
    execute.publish(execute.run(plan, pair.inputs, out), GOOD)
    assert left(out) == ["out", "real"]
    assert (out / "config.json").exists()


def test_a_parent_that_is_a_file_is_told(pair, plan, out):
    out.write_text("a file")
    with pytest.raises(OutputError, match="not a folder"):
        execute.run(plan, pair.inputs, out / "below")


def test_a_mount_point_is_told(out, monkeypatch):
    out.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self == out)
    with pytest.raises(OutputError, match="mount point"):
        execute.check_output(out)


def test_a_second_run_is_locked_out(pair, plan, out):
    staged = execute.run(plan, pair.inputs, out)
    lock = os.open(out.parent / ".out.suture" / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # kept after the run, for the time of the verification
    execute.abandon(staged)
    os.close(lock)
    assert left(out) == []


def test_the_lock_of_another_process_is_told(pair, plan, out):
    shop = out.parent / ".out.suture"
    shop.mkdir()
    lock = os.open(shop / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(OutputLocked):
        execute.run(plan, pair.inputs, out)
    os.close(lock)
    execute.publish(execute.run(plan, pair.inputs, out), GOOD)
    assert left(out) == ["out"]


def test_a_run_that_was_not_published_does_not_lock_its_own_process_out(pair, plan, out):
    first = execute.run(plan, pair.inputs, out)
    second = execute.run(plan, pair.inputs, out)
    assert first == second
    execute.abandon(second)


def test_a_file_system_without_locks_is_warned_of(pair, plan, out, monkeypatch, caplog):
    def no_locks(descriptor, operation):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    execute.publish(execute.run(plan, pair.inputs, out), GOOD)
    assert "no locks" in caplog.text


def test_a_release_while_another_one_comes_in_is_no_error(pair, plan, out, monkeypatch):
    """Between the removal of the lock and that of its folder."""
    rmdir = Path.rmdir

    def late(self):
        (self / "lock").touch()
        rmdir(self)

    monkeypatch.setattr(Path, "rmdir", late)
    execute.publish(execute.run(plan, pair.inputs, out), GOOD)
    assert left(out) == [".out.suture", "out"]
    monkeypatch.undo()
    with pytest.raises(OutputExists):
        execute.check_output(out)
    assert left(out) == ["out"]


def test_the_hidden_folder_of_a_published_output_is_left_to_its_owner(pair, plan, out):
    """Tidying up takes only what nobody holds, and nothing that is staged."""
    execute.publish(execute.run(plan, pair.inputs, out), GOOD)
    shop = out.parent / ".out.suture"
    shop.mkdir()
    lock = os.open(shop / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(OutputExists):
        execute.check_output(out)
    assert shop.exists()
    os.close(lock)
    (shop / "staged").mkdir()
    with pytest.raises(OutputExists):
        execute.check_output(out)
    assert shop.exists()


def test_a_hidden_folder_that_is_a_link_to_nothing_is_told(pair, plan, out):
    (out.parent / ".out.suture").symlink_to("nowhere")
    with pytest.raises(OutputError, match="No such file"):
        execute.run(plan, pair.inputs, out)


def test_new_parents_are_made_durable(pair, plan, out, monkeypatch):
    synced = set()
    monkeypatch.setattr(claim, "sync_path", synced.add)
    execute.publish(execute.run(plan, pair.inputs, out / "a" / "b"), GOOD)
    assert synced == {out.parent, out}


def test_a_journal_that_takes_half_a_line_is_a_full_disk(pair, plan, out, monkeypatch):
    monkeypatch.setattr(os, "write", lambda fd, data: len(data) - 1)
    with pytest.raises(DiskFull):
        execute.run(plan, pair.inputs, out)


def test_what_another_plan_left_is_replaced_and_said(pair, plan, out, caplog):
    shop = out.parent / ".out.suture"
    (shop / "0123456789abcdef").mkdir(parents=True)
    (shop / "0123456789abcdef" / "big.safetensors").write_bytes(b"old")
    (shop / "journal").write_bytes(b"old")
    with caplog.at_level(logging.WARNING):
        execute.publish(execute.run(plan, pair.inputs, out), GOOD)
    assert "0123456789abcdef" in caplog.text
    assert left(out) == ["out"]


def test_too_little_space_is_found_before_anything_is_written(pair, plan, out, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=plan.n_bytes_written - 1))
    with pytest.raises(DiskFull, match="GB are free") as error:
        execute.run(plan, pair.inputs, out)
    assert "merged weights" in error.value.expected
    assert left(out) == []


def full(number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("call", ["posix_fallocate", "ftruncate", "pwrite"])
@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EFBIG, "larger than the system")],
)
def test_a_disk_that_is_full_from_the_start_leaves_nothing(pair, plan, out, monkeypatch, call, number, words):
    monkeypatch.setattr(os, call, full(number))
    with pytest.raises(DiskFull, match=f"{words}.*: .* GB are free") as error:
        execute.run(plan, pair.inputs, out)
    assert "Nothing was written" in error.value.do
    assert left(out) == []


def test_a_disk_that_fills_up_at_the_end_keeps_what_is_done(pair, plan, out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(staging, "sync_path", full(errno.ENOSPC))
        with pytest.raises(DiskFull, match="GB are free") as error:
            execute.run(plan, pair.inputs, out)
    assert f"run again to go on, or remove {out.parent / '.out.suture'}" in error.value.do
    assert left(out) == [".out.suture"]
    execute.publish(execute.run(plan, pair.inputs, out), GOOD)
    assert left(out) == ["out"]


def test_space_that_an_interrupted_run_has_reserved_is_counted(pair, plan, out, monkeypatch):
    execute.run(plan, pair.inputs, out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    execute.publish(execute.run(plan, pair.inputs, out), GOOD)
    assert left(out) == ["out"]


def test_a_file_system_that_cannot_reserve_space_is_fine(pair, plan, out, monkeypatch):
    def not_supported(*args):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", not_supported)
    execute.publish(execute.run(plan, pair.inputs, out), GOOD)
    assert (out / plan.files[0].name).stat().st_size == plan.files[0].n_bytes


def test_a_write_error_is_told_with_its_file(pair, plan, out, monkeypatch):
    def broken(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(OutputError, match=r"model-00001-of-00002\.safetensors: cannot be written: Input/output error"):
        execute.run(plan, pair.inputs, out)
    assert left(out) == []


def test_everything_is_synced_before_the_output_can_appear(pair, plan, out, monkeypatch):
    synced = set()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.add(Path(f"/proc/self/fd/{fd}").readlink()), fsync(fd)))
    staged = execute.run(plan, pair.inputs, out)
    assert {staged.folder, *staged.folder.rglob("*")} <= synced
    execute.abandon(staged)
    synced.clear()
    execute.abandon(execute.run(plan, pair.inputs, out, Running(durable=False)))
    assert not synced


@pytest.fixture
def weights_cannot_be_synced(monkeypatch):
    fsync = os.fsync

    def broken(fd):
        if Path(f"/proc/self/fd/{fd}").readlink().suffix == ".safetensors":
            time.sleep(0.1)
            raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", broken)


@pytest.mark.usefixtures("weights_cannot_be_synced")
def test_a_disk_that_does_not_take_the_weights_is_told(pair, plan, out):
    with pytest.raises(OutputError, match=r"\.safetensors: cannot be written: Input/output error"):
        execute.run(plan, pair.inputs, out)
    assert left(out) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("suture")]


def test_an_output_that_appears_while_the_lock_is_taken_is_refused(pair, plan, out, monkeypatch):
    locked = claim._locked

    def late(*args):
        out.mkdir()
        (out / "theirs").write_text("theirs")
        return locked(*args)

    monkeypatch.setattr(claim, "_locked", late)
    with pytest.raises(OutputExists):
        execute.run(plan, pair.inputs, out)
    assert left(out) == ["out"]


def test_an_error_on_reading_back_is_told_as_such(pair, plan, out, monkeypatch):
    preadv = os.preadv

    def broken(fd, buffers, offset):
        if ".out.suture" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise OSError(errno.EIO, "Input/output error")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", broken)
    monkeypatch.setattr(hashing.PrefixHash, "feed", lambda self, begin, data: None)
    with pytest.raises(OutputError, match="cannot be read back: Input/output error"):
        execute.run(plan, pair.inputs, out)
    assert left(out) == []


def test_a_write_that_the_system_cuts_short_is_continued(pair, plan, out, tmp_path, monkeypatch):
    whole = execute.publish(execute.run(plan, pair.inputs, tmp_path / "whole"), GOOD)
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:777], offset))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:1000]], offset))
    assert contents(execute.publish(execute.run(plan, pair.inputs, out), GOOD)) == contents(whole)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(pair, plan, out, umask):
    old = os.umask(umask)
    try:
        execute.publish(execute.run(plan, pair.inputs, out), GOOD)
    finally:
        os.umask(old)
    for path in (out, *out.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask


def test_side_files_are_copied_byte_for_byte(pair, out):
    pair.add_side_file("deep/er/big.bin", bytes(range(256)) * 10_000)
    pair.add_side_file("empty.txt", b"")
    execute.publish(execute.run(make_plan(pair), pair.inputs, out), GOOD)
    for name in pair.side_files:
        assert (out / name).read_bytes() == (pair.folder / "base" / name).read_bytes()


def test_side_files_may_come_from_the_adapter(pair, out):
    (pair.folder / "adapter" / "tokenizer.json").write_text("adapter's")
    plan = make_plan(pair)
    plan = plan.__class__(
        **{f: getattr(plan, f) for f in plan.__slots__} | {"side_files": (SideFile("tokenizer.json", "adapter"),)}
    )
    execute.publish(execute.run(plan, pair.inputs, out), GOOD)
    assert (out / "tokenizer.json").read_text() == "adapter's"


def test_a_side_file_that_leads_out_of_the_base_is_refused(pair, plan, out, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (pair.folder / "base" / "tokenizer.json").unlink()
    (pair.folder / "base" / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="leaves its folder"):
        execute.run(plan, pair.inputs, out)
    assert left(out) == []


def test_only_staging_opens_files_for_writing():
    """Whoever writes a model's bytes does it where space and renames are taken care of. The claim opens its lock."""
    writes = re.compile(
        r"open\([^)]*[\"'](w|a|x|r\+|rb\+)|write_(text|bytes)\(|O_(WRONLY|RDWR|CREAT)|os\.(truncate|ftruncate|pwrite)\("
        r"|shutil\.(copy|move)|save_file\("
    )
    folder = Path(suture.__path__[0]) / "execute"
    found = {path.name for path in folder.rglob("*.py") if writes.search(path.read_text())}
    assert found == {Path(staging.__file__).name, Path(claim.__file__).name, "probe.py"}  # that one without a name
