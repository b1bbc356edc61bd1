"""How a run ends early: a flag that Ctrl-C, SIGTERM or a failing worker raises, and that every write looks at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """The flag. It has no lock, so that a signal handler may raise it at any moment."""

    __slots__ = ("requested",)

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """A flag that signals raise instead of ending the program, so that cleaning up is not cut short itself.

    Python handles signals in the main thread only, and a program's own handlers are left alone.
    """
    stop = Stop()
    replaced = []
    if threading.current_thread() is threading.main_thread():
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) is default:
                signal.signal(number, lambda *_: setattr(stop, "requested", True))
                replaced.append((number, default))
    try:
        yield stop
    finally:
        for number, default in replaced:
            signal.signal(number, default)
