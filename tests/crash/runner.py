"""One merge in a process of its own, with a fault: what the crash tests start and kill.

    python runner.py FOLDER FAULT [N]

The base and the adapter are in FOLDER/in, the output is FOLDER/made/out. Faults, at the N-th call:

    none         no fault
    kill-pwrite  kill -9 after a write to a weight file     bad-preadv   the disk cannot read
    kill-note    kill -9 after a line of the journal
    kill-fsync   kill -9 before an fsync
    kill-rename  kill -9 before the rename                  slow         every write takes a while; says so at the first
    nobody       run as a user that owns nothing
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from execute.made_plans import make_pair, make_plan

from suture import execute
from suture.errors import SutureError
from suture.execute import pieces
from suture.values import Running, Verdict

PIECE_BYTES = 10_000
SHAPE = {"n_shards": 3, "rows": 1000}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


def at_call(n: int, name: str, fault: Callable[[], None], *, before: bool, below: str = "") -> None:
    """Let the fault happen at the n-th call of os.`name` with a file whose path has `below` in it."""
    real, calls = getattr(os, name), itertools.count(1)

    def hooked(*args):
        counts = below in str(Path(f"/proc/self/fd/{args[0]}").readlink())
        hit = counts and next(calls) == n
        if before and hit:
            fault()
        result = real(*args)
        if not before and hit:
            fault()
        return result

    setattr(os, name, hooked)


def slow() -> None:
    real = os.pwrite

    def hooked(*args):
        os.write(1, b"writing\n")
        time.sleep(0.05)
        return real(*args)

    os.pwrite = hooked


def install(fault: str, n: int) -> None:
    match fault:
        case "kill-pwrite":
            at_call(n, "pwrite", kill, before=False)
        case "kill-note":
            at_call(n, "write", kill, before=False)
        case "kill-fsync":
            at_call(n, "fsync", kill, before=True)
        case "kill-rename":
            Path.rename = lambda self, target: kill()
        case "bad-preadv":
            at_call(n, "preadv", lambda: fail(errno.EIO), before=True, below="/in/base/model")
        case "slow":
            slow()
        case "nobody":
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)


def main() -> int:
    folder, fault, n = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pieces.PIECE_BYTES = PIECE_BYTES
    pair = make_pair(folder / "in", **SHAPE)
    plan = make_plan(pair)
    install(fault, n)
    try:
        execute.publish(execute.run(plan, pair.inputs, folder / "made" / "out", Running(workers=2)), Verdict(True, ()))
    except SutureError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
