"""The journal of a run: which pieces are written. It is trusted only for the run it belongs to, on the same boot.

{"boot": …, "plan_id": …}    the head: all that must be the same for the bytes on disk to be of use
17                           one line a finished piece
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from suture.codec import canonical

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Head:
    """What a run was made of. After a reboot the page cache is lost, so the boot is part of it."""

    plan_id: str
    inputs: str  # digest of the input files' state
    kernel: str
    pieces: str  # digest of where each piece begins and ends
    boot: str


def boot_id() -> str:
    """The kernel's name for this boot; empty where there is none, and then no journal is trusted."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


def head_line(head: Head) -> bytes:
    """The first line of a journal."""
    return canonical(head) + b"\n"


def piece_line(number: int) -> bytes:
    """The line that says that a piece is written."""
    return b"%d\n" % number


def finished(text: bytes, head: Head, n_pieces: int) -> frozenset[int]:
    """Pieces that a journal says are written; none if it is another run's, or damaged. A torn last line is ignored."""
    first, *lines = text.split(b"\n")
    if not head.boot or first + b"\n" != head_line(head):
        return frozenset()
    complete = lines[:-1]
    if not all(line.isdigit() and int(line) < n_pieces for line in complete):
        return frozenset()
    return frozenset(int(line) for line in complete)
