"""Others at the same files: writers of one output, inputs that vanish or change, folders that go, clocks that jump."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from crash.commands import KILL_AFTER, KILLED, READ, WRITE, Fault, How, sums

import suture
from suture.errors import InputChanged, InputError, OutputError, OutputExists, OutputLocked

MERGING = (WRITE, ".safetensors", 15)
VERIFYING = (READ, ".out.suture/", 1)


@pytest.fixture
def own(scene, place, llama):
    """A scene whose inputs may be changed."""
    shutil.copytree(llama, place / "in")
    scene(llama)
    return type(scene(llama))(place / "in", place)


def two_at_once(made, whole) -> None:
    processes = [made.popen(), made.popen()]
    ends = [(p.communicate(timeout=120)[1], p.returncode) for p in processes]
    assert sorted(code for _, code in ends) in ([0, OutputExists.exit_code], [0, OutputLocked.exit_code]), ends
    assert not [told for told, _ in ends if "Traceback" in told]
    assert sums(made.out) == whole
    assert made.left() == ["out"]
    shutil.rmtree(made.out)


def test_two_writers_at_once(scene, whole, llama):
    made = scene(llama)
    for _ in range(2):
        two_at_once(made, whole(llama))


@pytest.mark.slow
def test_two_writers_at_once_again_and_again(scene, whole, llama):
    made = scene(llama)
    for _ in range(10):
        two_at_once(made, whole(llama))


def test_the_lock_of_a_dead_process_is_none(server, scene, whole, llama):
    made = scene(llama)
    with server.paused(made.merge, *MERGING) as process:
        second = made.popen()
        assert "another process is writing" in second.communicate(timeout=120)[1]
        assert second.returncode == OutputLocked.exit_code
        os.kill(process, signal.SIGKILL)
    assert server.end().code == KILLED
    assert (made.shop / "lock").exists()
    assert server.run(made.merge).code == 0
    assert sums(made.out) == whole(llama)


@pytest.mark.parametrize("phase", [MERGING, VERIFYING], ids=["merging", "verifying"])
def test_a_lock_that_is_deleted(server, scene, whole, llama, phase):
    made = scene(llama)
    with server.paused(made.merge, *phase):
        (made.shop / "lock").unlink()
    ended = server.end()
    assert ended.code == OutputError.exit_code
    assert "the lock was removed while the merge ran" in ended.told
    assert made.left() == [".out.suture"]
    assert server.run(made.merge).code == 0
    assert sums(made.out) == whole(llama)
    assert made.left() == ["out"]


@pytest.mark.parametrize("phase", [MERGING, VERIFYING], ids=["merging", "verifying"])
@pytest.mark.parametrize("gone", ["made", "made/.out.suture"])
def test_folders_that_disappear(server, scene, llama, phase, gone):
    made = scene(llama)
    with server.paused(made.merge, *phase):
        shutil.rmtree(made.folder / gone)
    ended = server.end()
    assert ended.code in (OutputError.exit_code, InputError.exit_code), ended.stderr
    assert "Nothing was written" in ended.told
    (made.folder / "made").mkdir(exist_ok=True)
    assert made.left() == []


@pytest.mark.parametrize("name", ["base/model-00002-of-00002.safetensors", "base/tokenizer.json"])
def test_an_input_that_vanishes(server, own, whole, llama, name):
    path = own.inputs / name
    with server.paused(own.merge, WRITE, "/journal", 1):
        path.rename(path.with_suffix(".away"))
    ended = server.end()
    assert ended.code in (InputError.exit_code, InputChanged.exit_code), ended.stderr
    assert path.name in ended.told
    assert set(own.left()) <= {".out.suture"}
    path.with_suffix(".away").rename(path)
    assert server.run(own.merge).code == 0
    assert {**sums(own.out), "suture_receipt.json": ""} == {**whole(llama), "suture_receipt.json": ""}


def test_an_input_that_is_exchanged_during_the_merge(server, own):
    path = own.inputs / "base" / "model-00001-of-00002.safetensors"
    with server.paused(own.merge, *MERGING):
        other = path.with_suffix(".other")
        shutil.copy2(path, other)
        other.replace(path)
    ended = server.end()
    assert ended.code == InputChanged.exit_code
    assert "changed during the merge" in ended.told
    assert own.left() == []


@pytest.mark.parametrize("name", ["base/model-00001-of-00002.safetensors", "adapter/adapter_model.safetensors"])
@pytest.mark.parametrize("how", ["in place", "exchanged"])
def test_an_input_that_changes_before_the_next_run(server, own, name, how):
    """Size and date stay what they were."""
    path = own.inputs / name
    assert server.run(own.merge, Fault(WRITE, "/journal", 25, KILL_AFTER)).code == KILLED
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-2] ^= 1  # of the last value, in bf16
    changed = path if how == "in place" else path.with_suffix(".other")
    changed.write_bytes(data)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed.replace(path)
    ended = server.run(own.merge)
    assert ended.code == 0, ended.stderr
    assert re.search("started over|another plan left is removed", ended.told)
    found = sums(own.out)
    shutil.rmtree(own.out)
    assert server.run(own.merge).told == ""
    assert found == sums(own.out)


def test_nothing_depends_on_the_clock(server, own, whole, llama):
    for path in own.inputs.rglob("*"):
        os.utime(path, (4e9, 4e9))
    assert server.run(own.merge, Fault(WRITE, "/journal", 25, KILL_AFTER), How(jumps=True)).code == KILLED
    ended = server.run(own.merge, how=How(jumps=True))
    assert ended.code == 0, ended.stderr
    assert "going on with" in ended.told
    assert {**sums(own.out), "suture_receipt.json": ""} == {**whole(llama), "suture_receipt.json": ""}


def test_no_module_asks_for_the_date():
    """Beside those that measure how long something takes: training, the command line, the probe before a merge."""
    folder = Path(suture.__path__[0])
    asks = re.compile(r"\b(time\.time|time_ns|datetime|localtime|gmtime|strftime|monotonic|perf_counter)\b")
    found = {p.relative_to(folder) for p in folder.rglob("*.py") if asks.search(p.read_text())}
    assert {p.parts[0] for p in found - {Path("execute/probe.py")}} <= {"cli", "training"}


@pytest.mark.parametrize("target", ["empty", "missing", "full", "circle"])
def test_a_link_as_output(server, scene, whole, llama, target):
    made = scene(llama)
    made.out.symlink_to("out" if target == "circle" else target)
    if target in ("empty", "full"):
        (made.folder / "made" / target).mkdir()
    if target == "full":
        (made.folder / "made" / target / "mine").write_text("mine")
    ended = server.run(made.merge)
    assert ended.code == {"full": OutputExists.exit_code, "circle": OutputError.exit_code}.get(target, 0), ended.stderr
    assert ended.told == "" or target in ("full", "circle")
    assert made.out.is_symlink()
    if ended.code == 0:
        assert sums(made.out) == whole(llama)
    assert set(made.left()) == {"out"} | ({target} - {"circle"})


def test_folders_that_cannot_be_written_to(server, own, whole, llama):
    """TMPDIR, the cache and the home: of no use, of no matter. The cache is asked where the table does not know."""
    made, config = own, own.inputs / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "unknown_to_the_table": 1}))
    where = {"TMPDIR": "/proc", "SUTURE_CACHE": "/proc/cache", "HOME": "/proc"}
    ended = server.run(made.merge, how=How(env=where))
    assert ended.code == 0, ended.stderr
    assert "cache of model descriptions cannot be" in ended.told
    undisturbed, merged = whole(llama), sums(made.out)
    assert {name for name in merged if merged[name] != undisturbed[name]} <= {"config.json", "suture_receipt.json"}


def test_a_disk_that_is_read_only(server, scene, llama):
    made = scene(llama)
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=100k", "suture-test", str(made.folder / "made")]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        ended = server.run(made.merge)
    finally:
        subprocess.run(["umount", str(made.folder / "made")], check=True)
    assert ended.code == OutputError.exit_code
    assert "Read-only file system" in ended.told


def test_modes_are_those_of_a_copy(server, scene, llama):
    """Of a plain one: what the umask leaves, whatever the inputs have."""
    made = scene(llama)
    umask = os.umask(0o027)
    try:
        process = made.popen()
        process.communicate(timeout=120)
    finally:
        os.umask(umask)
    assert process.returncode == 0
    for path in (made.out, *made.out.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path
