"""Signals in every phase: Ctrl-C and SIGTERM leave nothing, SIGHUP and SIGQUIT what SIGKILL leaves; or all is done."""

from __future__ import annotations

import os
import signal

import pytest
from crash.commands import OPEN, READ, REMOVE, RENAME, SYNC, WRITE, How, sums

from suture.errors import Interrupted

# Where the command is stopped: before which call, of what file.
PHASES = {
    "before anything": (OPEN, "/base/config.json", 1),
    "journal": (RENAME, ".out.suture", 1),
    "first write": (WRITE, ".safetensors", 1),
    "merge": (WRITE, ".safetensors", 20),
    "note": (WRITE, "/journal", 10),
    "sync": (SYNC, ".safetensors", 1),
    "receipt": (WRITE, "suture_receipt.json", 1),
    "verification": (READ, ".out.suture/", 1),
    "late verification": (READ, ".out.suture/", 30),
    "rename": (RENAME, ".out.suture", 2),
    "cleaning up": (REMOVE, "/journal", 1),
}
DONE = {"rename", "cleaning up"}
QUICK = {"merge", "verification", "rename"}  # the others are for `-m slow`
EACH = [phase if phase in QUICK else pytest.param(phase, marks=pytest.mark.slow) for phase in PHASES]
WISHES = [(signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)]
NO_CORE = How(limits={"RLIMIT_CORE": 0})


@pytest.mark.parametrize("phase", EACH)
@pytest.mark.parametrize("numbers", WISHES, ids=lambda numbers: "+".join(n.name for n in numbers))
def test_a_wish_to_stop(server, scene, whole, llama, phase, numbers):
    made = scene(llama)
    with server.paused(made.merge, *PHASES[phase]) as process:
        for number in numbers:
            os.kill(process, number)
    ended = server.end()
    if phase in DONE:
        assert (ended.code, ended.told) == (0, "")
        assert sums(made.out) == whole(llama)
        assert made.left() == ["out"]
    else:
        assert ended.code == Interrupted.exit_code, ended.stderr
        assert "stopped" in ended.told
        assert made.left() == []


@pytest.mark.parametrize("phase", EACH)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL], ids=lambda n: n.name)
def test_an_end_without_a_word(server, scene, whole, llama, phase, number):
    made = scene(llama)
    with server.paused(made.merge, *PHASES[phase], NO_CORE) as process:
        os.kill(process, number)
    assert server.end().code == -number
    assert made.out.exists() == (phase == "cleaning up")
    ended = server.run(made.merge)
    assert ended.code == (21 if phase == "cleaning up" else 0), ended.stderr
    assert sums(made.out) == whole(llama)
    assert made.left() == ["out"]


def test_a_signal_that_is_ignored_stays_ignored(scene, whole, llama):
    """As under nohup."""
    made = scene(llama)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = made.popen()
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert sums(made.out) == whole(llama)
