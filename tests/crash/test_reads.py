"""The disk cannot read: every single read of a merge fails once, and the error names the file; the next run gets done.

And reads that are merely strange: one byte at a time, interrupted by signals.
"""

from __future__ import annotations

import errno
import re
import shutil

import pytest
from crash.commands import FAIL_FROM, FAIL_ONCE, INTERRUPT, KILL_BEFORE, ONE_BYTE, OPEN, READ, RENAME, Fault, sums

from suture.errors import InputError, NotVerified, OutputError

NAMED = re.compile(r"(base|adapter|made/\.out\.suture)/\S*[\w.]+\.(safetensors|json)|(base|adapter): ")
REFUSED = {InputError.exit_code, InputError.exit_code + 1, OutputError.exit_code, NotVerified.exit_code}


def one_thread(made) -> list[object]:
    """The merge with as many reads, and in the same order, every time: what is read back depends on the threads."""
    return [*made.merge, "--workers", 1]


def reads(server, made, part: str) -> int:
    """How many reads of files with `part` in their path a merge makes."""
    ended = server.run(one_thread(made), Fault(READ, part))
    assert ended.code == 0, ended.stderr
    shutil.rmtree(made.out)
    return ended.count


def check_refusal(made, ended, n: int) -> None:
    assert ended.code in REFUSED, (n, ended.code, ended.stderr)
    assert "Input/output error" in ended.told, (n, ended.stderr)
    assert NAMED.search(ended.told), (n, ended.stderr)
    assert set(made.left()) <= {".out.suture"}


def fail_each(server, made, whole, part: str, numbers) -> int:
    """Let the n-th read fail, for every n, and go on where something was kept. How often it could be gone on."""
    continued = 0
    silent = []
    for n in numbers:
        ended = server.run(one_thread(made), Fault(READ, part, n, FAIL_ONCE, errno.EIO))
        if ended.code == 0:
            silent.append(n)
            shutil.rmtree(made.out)
            continue
        check_refusal(made, ended, n)
        if ".out.suture" in made.left():
            ended = server.run(made.merge)
            assert ended.code == 0, ended.stderr
            assert "going on with" in ended.stderr
            continued += 1
            assert sums(made.out) == whole
            shutil.rmtree(made.out)
    assert silent == []
    return continued


def test_some_reads_fail(server, scene, whole, llama):
    made = scene(llama)
    n = reads(server, made, str(llama))
    assert n > 100
    fail_each(server, made, whole(llama), str(llama), [1, 2, n // 3, n // 2, n - 1, n])
    n = reads(server, made, ".out.suture")
    fail_each(server, made, whole(llama), ".out.suture", [1, n])


@pytest.mark.slow
def test_every_read_fails(server, scene, whole, llama):
    made = scene(llama)
    for part in (str(llama), ".out.suture"):
        n = reads(server, made, part)
        continued = fail_each(server, made, whole(llama), part, range(1, n + 1))
        print(f"\n{n} reads of {part} failed one by one, {continued} of the merges were continued")


def test_a_disk_that_reads_nothing_any_more(server, scene, llama):
    made = scene(llama)
    for at in (1, 60, 100):
        check_refusal(made, server.run(made.merge, Fault(READ, str(llama), at, FAIL_FROM, errno.EIO)), at)


def test_reading_back_what_an_earlier_run_wrote_fails(server, scene, whole, llama):
    made = scene(llama)
    server.run(made.merge, Fault(RENAME, ".out.suture", 2, KILL_BEFORE))
    ended = server.run(made.merge, Fault(READ, ".safetensors", 1, FAIL_ONCE, errno.EIO))
    assert ended.code in REFUSED
    assert server.run(made.merge).code == 0
    assert sums(made.out) == whole(llama)


@pytest.mark.parametrize("action", [pytest.param(ONE_BYTE, marks=pytest.mark.slow, id="one byte"), INTERRUPT])
def test_strange_reads_change_nothing(server, scene, whole, llama, action):
    made = scene(llama)
    for part in (str(llama), ".out.suture"):
        ended = server.run(made.merge, Fault(READ, part, 0, action))
        assert ended.code == 0, ended.stderr
        assert sums(made.out) == whole(llama)
        shutil.rmtree(made.out)


@pytest.mark.parametrize("at", [1, 4, 9])
def test_files_that_cannot_be_opened(server, scene, llama, at):
    made = scene(llama)
    ended = server.run(made.merge, Fault(OPEN, ".safetensors", at, FAIL_ONCE, errno.EMFILE))
    assert ended.code in REFUSED
    assert "Too many open files" in ended.told
    assert set(made.left()) <= {".out.suture"}
