"""How a run ends early: a flag that Ctrl-C, SIGTERM or a failing worker raises, and that every write looks at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from suture.errors import Interrupted


class Stop:
    """The flag. It has no lock, so that a signal handler may raise it at any moment."""

    __slots__ = ("requested",)

    def __init__(self) -> None:
        self.requested = False

    def check(self, out: Path) -> None:
        """Raise Interrupted if the run is to end."""
        if self.requested:
            raise stopped(out)


_listening: list[Stop] = []  # the main thread's flag, while it has one


def stopped(out: Path) -> Interrupted:
    """The error of a run that was stopped."""
    return Interrupted("stopped", where=str(out), do="Nothing was written.")


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """A flag that signals raise instead of ending the program, so that cleaning up is not cut short itself.

    Python handles signals in the main thread only, and a program's own handlers are left alone. Inside of another
    block, the flag is that block's. SIGHUP and SIGQUIT end the program at once, as SIGKILL does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Stop()
        return
    if _listening:
        yield _listening[0]
        return
    stop, replaced = Stop(), []
    try:
        _listening.append(stop)
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, lambda *_: setattr(stop, "requested", True))
                replaced.append((number, before))
        yield stop
    finally:
        _listening.clear()
        for number, before in replaced:
            signal.signal(number, before)
