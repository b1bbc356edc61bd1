"""The disk fills up: the error says what is needed and free, and what is done is kept, to go on when there is room."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from crash.commands import FAIL_FROM, FAIL_ONCE, KILL_AFTER, KILLED, RESERVE, WRITE, Fault, How, sums

from suture.errors import DiskFull

TOLD = re.compile(r": [\d.]+ GB are free\n  expected: [\d.]+ GB for the merged weights")


def check_refusal(made, ended, words: str = "") -> None:
    """A clean error, and no output; what is left is kept to be continued, which is said."""
    assert ended.code == DiskFull.exit_code, ended.stderr
    assert words in ended.told
    assert TOLD.search(ended.told), ended.stderr
    left = made.left()
    assert set(left) <= {".out.suture"}
    assert ("run again to go on, or remove " + str(made.shop) in ended.told) == bool(left)
    assert (f"Nothing was written to {made.out}" if left else "Nothing was written.") in ended.told


def go_on(server, made, whole) -> bool:
    """Run again, now with room; True if it was gone on."""
    ended = server.run(made.merge)
    assert ended.code == 0, ended.stderr
    assert sums(made.out) == whole
    assert made.left() == ["out"]
    shutil.rmtree(made.out)
    return "going on with" in ended.stderr


def fill_up(server, made, whole, numbers: list[int], seed: int) -> int:
    """Have writes fail from the n-th on, for each n; how many of the merges were continued."""
    draw = random.Random(seed)
    continued = 0
    for n in numbers:
        number = draw.choice([errno.ENOSPC, errno.EDQUOT])
        action = draw.choice([FAIL_FROM, FAIL_ONCE])
        check_refusal(made, server.run(made.merge, Fault(WRITE | RESERVE, ".out.suture", n, action, number)))
        continued += go_on(server, made, whole)
    return continued


def writes(server, made) -> int:
    ended = server.run(made.merge, Fault(WRITE | RESERVE, ".out.suture"))
    assert ended.code == 0, ended.stderr
    shutil.rmtree(made.out)
    return ended.count


def test_a_disk_that_fills_up_at_some_writes(server, scene, whole, llama):
    made = scene(llama)
    n = writes(server, made)
    assert fill_up(server, made, whole(llama), [1, 3, n // 2, n - 1, n], 1) >= 2


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_write(server, scene, whole, moe):
    made = scene(moe)
    n = writes(server, made)
    numbers = sorted(random.Random(4).sample(range(1, n + 1), 40))
    continued = fill_up(server, made, whole(moe), numbers, 5)
    print(f"\nfull at 40 of {n} writes; {continued} of the merges were continued")
    assert continued > 20


def test_the_limit_of_a_files_size(server, scene, whole, llama):
    """RLIMIT_FSIZE: found when the space is reserved, before anything is computed."""
    made = scene(llama)
    largest = max(p.stat().st_size for p in (llama / "base").glob("*.safetensors"))
    draw = random.Random(6)
    for limit in sorted(draw.randrange(6_000, largest) for _ in range(4)):
        check_refusal(made, server.run(made.merge, how=How(limits={"RLIMIT_FSIZE": limit})), "larger than the system")
        assert made.left() == []
    go_on(server, made, whole(llama))


@pytest.mark.slow
def test_the_limit_of_a_files_size_at_any_offset(server, scene, whole, llama):
    made = scene(llama)
    draw = random.Random(7)
    for _ in range(20):
        how = How(limits={"RLIMIT_FSIZE": draw.randrange(6_000, 48_000)})
        check_refusal(made, server.run(made.merge, how=how), "larger than the system")
    go_on(server, made, whole(llama))


def test_a_full_disk_again_when_going_on(server, scene, whole, llama):
    made = scene(llama)
    fault = Fault(WRITE, ".out.suture/", 15, FAIL_FROM, errno.ENOSPC)
    check_refusal(made, server.run(made.merge, fault))
    noted = (made.shop / "journal").read_bytes()
    check_refusal(made, server.run(made.merge, replace(fault, at=5)))
    assert len((made.shop / "journal").read_bytes()) >= len(noted)
    assert go_on(server, made, whole(llama))


@pytest.fixture
def small_disk(place):
    """A file system of its own, a few hundred KB large."""
    target = place / "made"
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "suture-test", str(target)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield target
    subprocess.run(["umount", str(target)], check=True)


def test_a_small_disk(server, scene, whole, llama, small_disk):
    """Full before the merge; then there is room."""
    made = scene(llama)
    needed = sum(p.stat().st_size for p in (llama / "base").glob("*.safetensors"))
    (small_disk / "ballast").write_bytes(b"\0" * (400_000 - needed // 2))
    ended = server.run(made.merge)
    (small_disk / "ballast").unlink()
    check_refusal(made, ended, "the disk is full")
    assert made.left() == []
    go_on(server, made, whole(llama))


def test_a_small_disk_that_an_interrupted_merge_has_reserved(server, scene, whole, llama, small_disk):
    """What it has reserved is its own: nothing more is asked for."""
    made = scene(llama)
    assert server.run(made.merge, Fault(WRITE, "journal", 12, KILL_AFTER)).code == KILLED
    free = shutil.disk_usage(small_disk).free
    with (small_disk / "ballast").open("wb") as file:
        file.write(b"\0" * (free - 24_000))  # for the side files and the receipt
    ended = server.run(made.merge)
    assert ended.code == 0, ended.stderr
    assert "going on with" in ended.stderr
    assert sums(made.out) == whole(llama)
