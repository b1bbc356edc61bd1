"""The command `suture` in processes of its own, with faults that a preloaded library brings about (`faults.c`)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import suture

HERE = Path(__file__).resolve().parent
MARK = "SUTURE_CRASH_TEST"  # in the environment of every process that a test starts
KILLED = -signal.SIGKILL
PIECE_BYTES = 1_500
PATIENCE = 120  # seconds until a command counts as hung

READ, WRITE, SYNC, RENAME, REMOVE, OPEN, MAKE, RESERVE = (1 << k for k in range(8))
CHANGES = WRITE | SYNC | RENAME | REMOVE | MAKE | RESERVE
NOTHING, KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_FROM, ONE_BYTE, INTERRUPT, PAUSE = range(8)


def environment() -> dict[str, str]:
    """That of every process that a test starts."""
    source = str(Path(suture.__path__[0]).parent)
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", MARK: str(os.getpid())}


@dataclass(frozen=True)
class Fault:
    """What happens at the `at`-th call of these kinds with a file whose path has `part` in it."""

    kinds: int = 0
    part: str = ""
    at: int = 0
    action: int = NOTHING
    number: int = errno.EIO


@dataclass(frozen=True)
class How:
    """How a command runs, beside its fault."""

    piece_bytes: int = PIECE_BYTES
    env: dict[str, str] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    jumps: bool = False  # of the clock


@dataclass(frozen=True)
class Ended:
    """A command's end."""

    code: int
    stdout: str
    stderr: str
    count: int = 0  # calls that its fault counted

    @property
    def told(self) -> str:
        """What it told, after a look that it is no traceback and no bug."""
        assert "Traceback" not in self.stderr, self.stderr
        assert "bug" not in self.stderr, self.stderr
        return self.stderr


class Server:
    """Runs commands in forks of one process that has imported everything."""

    def __init__(self, library: Path, notes: Path) -> None:
        self._notes = notes
        env = {**environment(), "LD_PRELOAD": str(library)}
        command = [sys.executable, str(HERE / "server.py")]
        self._process = subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def begin(self, arguments: list[object], fault: Fault | None = None, how: How | None = None) -> int:
        """Start a command; its process."""
        fault, how = fault or Fault(), how or How()
        job = {"arguments": [str(a) for a in arguments], "notes": str(self._notes), **vars(fault), **vars(how)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> Ended:
        """Wait for the command that was started."""
        code, count = map(int, self._process.stdout.readline().split())
        return Ended(code, *((self._notes / name).read_text() for name in ("stdout", "stderr")), count)

    def run(self, arguments: list[object], fault: Fault | None = None, how: How | None = None) -> Ended:
        """Run a command to its end."""
        self.begin(arguments, fault, how)
        return self.end()

    @contextlib.contextmanager
    def paused(self, arguments: list[object], kinds: int, part: str, at: int, how: How | None = None) -> Iterator[int]:
        """A command, stopped before a call while the block runs; its process. `end` waits for it."""
        process = self.begin(arguments, Fault(kinds, part, at, PAUSE), how)
        patience = time.monotonic() + PATIENCE
        while (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < patience, "the command did not come that far"
            time.sleep(0.005)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):  # the block may have killed it
                os.kill(process, signal.SIGCONT)

    def stop(self) -> None:
        """End the server."""
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


@dataclass(frozen=True)
class Scene:
    """Inputs that no test may change, and a folder for what is made of them."""

    inputs: Path
    folder: Path
    options: tuple[str, ...] = ()  # of the merge

    @property
    def out(self) -> Path:
        """The output, in a parent that holds nothing else."""
        return self.folder / "made" / "out"

    @property
    def shop(self) -> Path:
        """The hidden folder beside it."""
        return self.folder / "made" / ".out.suture"

    @property
    def merge(self) -> list[object]:
        """The arguments of the merge."""
        return ["merge", self.inputs / "base", self.inputs / "adapter", "-o", self.out, *self.options]

    def popen(self, *more: object, **changes: Any) -> subprocess.Popen[str]:
        """The real command."""
        command = [sys.executable, "-m", "suture", *map(str, (*self.merge, *more))]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            command, text=True, stdin=subprocess.DEVNULL, **{"env": environment(), **pipes, **changes}
        )

    def left(self) -> list[str]:
        """What stands beside the output, and the output."""
        return sorted(p.name for p in (self.folder / "made").iterdir())


def sums(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def left_running() -> list[str]:
    """Processes of the tests that still run a merge."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}={os.getpid()}".encode() in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found += [command] if "suture merge" in command else []
        except OSError:
            continue
    return found
