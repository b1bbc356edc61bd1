"""The parent's end of the process in which doubtful patterns run: started when needed, replaced when it has ended."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.errors import InputError

CHILD = Path(__file__).with_name("child.py")


class Ended(Exception):
    """The process ended over a request; says by what."""


class Guard:
    """One child process, which any number of threads may ask; a fork of this process gets a child of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The child's answer.

        Raises:
            Ended: the child did not survive the request.
            InputError: no process can be started.
        """
        with self._lock:
            process = self._process or self._start()
            try:
                answer = _exchange(process, json.dumps(request).encode() + b"\n")
            except BaseException:  # an answer that comes late must not be taken for the next one
                self._stop()
                raise
            if answer is None:
                reason = self._stop()
                raise Ended(reason)
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """In a fork: leave the child to the process that started it."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable or "python3", "-I", "-S", str(CHILD)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise InputError(
                f"its regular expressions need a process to run in, and none can be started: {error.strerror}",
                where="adapter_config.json",
                do="List the modules by name.",
            ) from error
        return self._process

    def _stop(self) -> str:
        """End the child; what it had ended by, in words."""
        process, self._process = self._process, None
        if process is None:
            return ""
        ended = process.poll()
        if ended is None:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return _words(process.wait())


def _exchange(process: subprocess.Popen[bytes], line: bytes) -> bytes | None:
    """The answer to a line; None where the process ended instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except BrokenPipeError:
        return None
    answer = process.stdout.readline()
    return answer if answer.endswith(b"\n") else None


def _words(code: int) -> str:
    if code == -signal.SIGPROF:
        return "it takes too long"
    return f"the process that tried it ended with {code}"


GUARD = Guard()
atexit.register(GUARD.close)
os.register_at_fork(after_in_child=GUARD.forget)
