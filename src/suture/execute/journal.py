"""The journal of a run: what of its output is written. It is trusted only for the run it belongs to.

{"boot": …, "plan_id": …}    the head: all that must be the same for the bytes on disk to be of use
+17                          a piece is written: true until the next boot, which the page cache does not outlive
=9f86d0… NAME                a weight file is whole: true for as long as its bytes have this sha256
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from suture.codec import canonical

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# A line that is torn and grown together with the next one is no line, thanks to its sign.
_PIECE = re.compile(rb"\+(0|[1-9]\d{0,17})")
_SUM = re.compile(rb"=([0-9a-f]{64}) (.+)")
_DAMAGED = "its journal is damaged"


@dataclass(frozen=True, slots=True)
class Head:
    """What a run was made of. After a reboot the page cache is lost, so the boot is part of it."""

    plan_id: str
    inputs: str  # digest of the input files' state
    kernel: str
    pieces: str  # digest of where each piece begins and ends
    boot: str


_OTHER = {
    "plan_id": "it was another plan's",
    "inputs": "the base's or the adapter's files were touched since",
    "kernel": "another kernel computed it",
    "pieces": "it was cut into other pieces",
}


@dataclass(frozen=True, slots=True)
class Past:
    """What a journal says of an earlier run."""

    pieces: frozenset[int] = frozenset()  # written, on this boot
    sums: Mapping[str, str] = field(default_factory=dict)  # weight files that were whole, with their sha256
    doubt: str = ""  # why not all of it is trusted


def boot_id() -> str:
    """The kernel's name for this boot; empty where there is none, and then no piece is trusted."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


def head_line(head: Head) -> bytes:
    """The first line of a journal."""
    return canonical(head) + b"\n"


def piece_line(number: int) -> bytes:
    """The line that says that a piece is written."""
    return b"+%d\n" % number


def sum_line(file: str, sha256: str) -> bytes:
    """The line that says that a weight file is whole."""
    return b"=%s %s\n" % (sha256.encode(), os.fsencode(file))


def journal_text(head: Head, pieces: Iterable[int], sums: Mapping[str, str]) -> bytes:
    """A journal that says all this."""
    lines = [head_line(head), *map(piece_line, sorted(pieces)), *(sum_line(f, sums[f]) for f in sorted(sums))]
    return b"".join(lines)


def read_journal(text: bytes, head: Head, n_pieces: int) -> Past:
    """What is to be trusted of a journal for a run with this head. A torn last line is ignored.

    Pieces count on the same boot only, and if nothing in the journal is damaged. Sums speak for themselves.
    """
    first, *lines = text.split(b"\n")
    if not lines:
        return Past(doubt=_DAMAGED if text else "")
    if other := _other(first, head):
        return Past(doubt=other)
    pieces, sums, damaged = set[int](), dict[str, str](), False
    for line in lines[:-1]:
        if piece := _PIECE.fullmatch(line):
            pieces.add(int(piece[1]))
        elif whole := _SUM.fullmatch(line):
            sums[os.fsdecode(whole[2])] = whole[1].decode()
        else:
            damaged = True
    if not head.boot or first + b"\n" != head_line(head):
        return Past(sums=sums, doubt="the machine was started anew since")
    if damaged or max(pieces, default=0) >= n_pieces:
        return Past(sums=sums, doubt=_DAMAGED)
    return Past(frozenset(pieces), sums)


def _other(first: bytes, head: Head) -> str:
    """Why the bytes that a journal speaks of are of no use for this head; empty if they are."""
    try:
        found = json.loads(first)
    except (ValueError, RecursionError):
        return _DAMAGED
    if not isinstance(found, dict) or found.keys() != {f.name for f in fields(Head)}:
        return _DAMAGED
    return next((words for name, words in _OTHER.items() if found[name] != getattr(head, name)), "")
