"""Starts `suture` again and again without its imports, each in a forked process, with a fault: see `commands.py`.

One JSON object a line on stdin: arguments, pieces' size, fault, folder for the outputs. One line back when the process
runs, with its id; one when it has ended, with its status and the number of calls that the fault counted.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import sys
from typing import Any

import rich.console  # noqa: F401 - what a merge imports on its way, so that the forks need not

import suture.pipeline
import suture.verification  # noqa: F401
from suture.cli import _show, app  # noqa: F401
from suture.execute import pieces

FAULTS = ctypes.CDLL(None)
FAULTS.faults_count.restype = ctypes.c_long
COUNT = memoryview(mmap.mmap(-1, 8)).cast("q")  # shared with the forks


def forked(job: dict[str, Any]) -> None:
    """Run one command in this process, which ends with it."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{job['notes']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.environ.update(job["env"])
    pieces.PIECE_BYTES = job["piece_bytes"]
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    sys.argv = ["suture", *job["arguments"]]
    if job["jumps"]:
        FAULTS.faults_jump()
    FAULTS.faults_arm(job["kinds"], job["part"].encode(), ctypes.c_long(job["at"]), job["action"], job["number"])
    code = 0
    try:
        app.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        COUNT[0] = FAULTS.faults_count()
        FAULTS.faults_arm(0, b"", ctypes.c_long(0), 0, 0)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Run every command that is asked for, one after the other."""
    for line in sys.stdin:
        job = json.loads(line)
        COUNT[0] = 0
        process = os.fork()
        if process == 0:
            forked(job)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), COUNT[0], flush=True)


if __name__ == "__main__":
    serve()
