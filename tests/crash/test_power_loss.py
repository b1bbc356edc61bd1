"""The power fails: what the disk has of journal and weights is any mixture of old, new and nothing. Right in the end.

A loss of power is imitated on what a killed merge has left: the journal is made that of another boot, cut, zeroed or
torn, and of the weights only those files are spared that the disk was told to hold.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
from crash.commands import KILL_AFTER, KILL_BEFORE, KILLED, RENAME, WRITE, Fault, Scene, Server, sums


def killed(server: Server, made: Scene, at: int) -> Path:
    """What a merge leaves that was killed after a write to its journal (not the first): the folder of weights."""
    assert server.run(made.merge, Fault(WRITE, "/journal", at, KILL_AFTER)).code == KILLED
    (stage,) = (p for p in made.shop.iterdir() if p.is_dir())
    return stage


def complete(server: Server, made: Scene) -> Path:
    """What a merge leaves that was killed when all of it was written, right before its output gets its name."""
    assert server.run(made.merge, Fault(RENAME, ".out.suture", 2, KILL_BEFORE)).code == KILLED
    (stage,) = (p for p in made.shop.iterdir() if p.is_dir())
    return stage


def reboot(made: Scene) -> list[bytes]:
    """Make the journal another boot's; its lines."""
    journal = made.shop / "journal"
    head, *lines = journal.read_bytes().splitlines(keepends=True)
    head = json.dumps({**json.loads(head), "boot": "another"}, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    journal.write_bytes(head + b"".join(lines))
    return [head, *lines]


def check_whole(server: Server, made: Scene, whole: dict[str, str]) -> str:
    """Run again; what it said."""
    ended = server.run(made.merge)
    assert ended.code == 0, ended.stderr
    assert sums(made.out) == whole
    assert made.left() == ["out"]
    shutil.rmtree(made.out)
    return ended.told


def spoil(path: Path, draw: random.Random) -> None:
    """What a disk may have of a file that it was not told to hold."""
    size = path.stat().st_size
    match draw.choice(["zeros", "tail", "hole", "empty", "cut", "gone", "noise"]):
        case "zeros":
            path.write_bytes(b"\0" * size)
        case "tail":
            path.write_bytes(path.read_bytes()[: size // 2].ljust(size, b"\0"))
        case "hole":
            data = bytearray(path.read_bytes())
            begin = draw.randrange(size)
            data[begin : begin + 4096] = b"\0" * len(data[begin : begin + 4096])
            data[-1] ^= 1
            path.write_bytes(data)
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "gone":
            path.unlink()
        case "noise":
            path.write_bytes(draw.randbytes(size))


def test_files_that_the_disk_holds_are_gone_on_from(server, scene, whole, llama):
    made = scene(llama)
    stage = complete(server, made)
    lines = reboot(made)
    files = sorted(p.name for p in stage.glob("*.safetensors"))
    assert sum(line.startswith(b"=") for line in lines) == len(files) == 2
    (stage / files[0]).write_bytes(b"\0" * (stage / files[0]).stat().st_size)
    told = check_whole(server, made, whole(llama))
    done, n_pieces = map(int, re.search(r"going on with an interrupted merge, (\d+) of (\d+) pieces", told).groups())
    assert 0 < done < n_pieces
    assert "the machine was started anew since" in told


def test_pieces_alone_are_not_trusted_after_a_reboot(server, scene, whole, llama):
    made = scene(llama)
    stage = killed(server, made, 8)
    reboot(made)
    for path in stage.glob("*.safetensors"):
        path.write_bytes(b"\0" * path.stat().st_size)
    assert "started over (the machine was started anew since)" in check_whole(server, made, whole(llama))


def lose_power(server: Server, made: Scene, whole: dict[str, str], draw: random.Random) -> None:
    """One loss of power, and what comes after it."""
    stage = complete(server, made) if draw.random() < 0.4 else killed(server, made, draw.randint(2, 38))
    lines = reboot(made)
    held = {line[66:].strip().decode() for line in lines if line.startswith(b"=")} if draw.random() < 0.7 else set()
    for path in sorted(stage.rglob("*")):
        if path.is_file() and path.name not in held and draw.random() < 0.9:
            spoil(path, draw)
    text = b"".join(lines)
    cut = draw.randint(0, len(text))
    match draw.choice(["whole", "cut", "zeroed", "gone", "new"]):
        case "cut":
            (made.shop / "journal").write_bytes(text[:cut])
        case "zeroed":
            (made.shop / "journal").write_bytes(text[:cut].ljust(len(text), b"\0"))
        case "gone":
            (made.shop / "journal").unlink()
        case "new":
            (made.shop / "journal.new").write_bytes(text[:cut])
    if draw.random() < 0.2:
        shutil.rmtree(stage)
    check_whole(server, made, whole)


def test_some_losses_of_power(server, scene, whole, llama):
    made, draw = scene(llama), random.Random(8)
    for _ in range(4):
        lose_power(server, made, whole(llama), draw)


@pytest.mark.slow
def test_many_losses_of_power(server, scene, whole, llama):
    made, draw = scene(llama), random.Random(9)
    for _ in range(60):
        lose_power(server, made, whole(llama), draw)


@pytest.mark.slow
def test_a_journal_that_is_cut_at_any_byte(server, scene, whole, llama):
    """On the same boot, where its pieces are trusted: what is cut off is written again."""
    made, draw = scene(llama), random.Random(10)
    stage = killed(server, made, 20)
    shutil.copytree(made.shop, made.folder / "kept")
    text = (made.shop / "journal").read_bytes()
    head = text.index(b"\n")
    for cut in [0, 1, head - 1, *range(head, len(text), 3)]:
        shutil.rmtree(made.shop, ignore_errors=True)
        shutil.copytree(made.folder / "kept", made.shop)
        (made.shop / "journal").write_bytes(text[:cut])
        if cut <= head:  # nothing can be trusted, and nothing is
            for path in stage.glob("*.safetensors"):
                path.write_bytes(draw.randbytes(path.stat().st_size))
        check_whole(server, made, whole(llama))


def test_notes_on_a_file_that_was_lost_are_not_believed_later(server, scene, whole, llama):
    """Lost, made anew at its full size, and killed before it is filled again: its old notes must be gone by then."""
    made = scene(llama)
    stage = complete(server, made)
    lost = min(stage.glob("*.safetensors"))
    lost.unlink()
    assert server.run(made.merge, Fault(WRITE, lost.name, 2, KILL_BEFORE)).code == KILLED
    assert lost.stat().st_size > 0
    check_whole(server, made, whole(llama))


def test_what_an_earlier_run_completed_and_somebody_changed_is_not_taken(server, scene, whole, llama):
    made = scene(llama)
    stage = complete(server, made)
    path = min(stage.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    ended = server.run(made.merge)
    assert ended.code == 20
    assert f"{path}: an earlier run wrote other bytes than are read now" in ended.told
    assert made.left() == []
    check_whole(server, made, whole(llama))


@pytest.mark.parametrize("at", [1, 2])
def test_killed_around_a_rename_of_the_journal_or_of_the_output(server, scene, whole, llama, at):
    made = scene(llama)
    assert server.run(made.merge, Fault(RENAME, ".out.suture", at, KILL_AFTER)).code == KILLED
    if at == 1:
        check_whole(server, made, whole(llama))
    else:
        assert sums(made.out) == whole(llama)
        assert made.left() == [".out.suture", "out"]
        assert server.run(made.merge).code == 21
        assert made.left() == ["out"]
