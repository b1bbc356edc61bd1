"""What a config may not do while its model is built: talk to the network, or ask for a million layers.

Some configs name a part of the model by its place on the Hub (`backbone`), or hold the arguments of another library's
loader. An audit hook sees every connection, whichever library opens it, and refuses those of the thread that builds;
patching a library, or its offline switch, would reach other threads and miss the next library.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from suture.errors import FormatError

_COUNTS = ("layer", "layers", "experts", "depth", "depths", "num_labels", "num_blocks")
_MAX_COUNT = 100_000  # the largest published models stay far below it
_EVENTS = frozenset({"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"})
_HOST = {"socket.connect": 1, "socket.sendto": 1}  # where the address stands among an event's arguments; else first


class _Here(threading.local):
    building = 0


_here = _Here()


@contextlib.contextmanager
def sealed() -> Iterator[None]:
    """Refuse every connection that this thread wants to make inside the block.

    Raises:
        FormatError: one was wanted.
    """
    _install()
    _here.building += 1
    try:
        yield
    finally:
        _here.building -= 1


@cache
def _install() -> None:
    """Once a process; a hook cannot be taken away again."""
    sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in _EVENTS and _here.building:
        raise refused(repr(arguments[_HOST.get(event, 0)])[:80])


def refused(host: str) -> FormatError:
    """The error for a config whose model is to be had only by asking this host."""
    return FormatError(
        f"the model cannot be built from its config alone: a part of it is asked for at {host}",
        where="config.json",
        expected="a config that describes the whole model",
        do="Write the config of that part into this one (such as backbone_config in the place of backbone), and check "
        "who wrote it.",
    )


def refuse_absurd(value: Any, key: str = "") -> None:
    """Refuse counts that no model has: some configs make lists of that length before any module is built.

    Raises:
        FormatError: names the first such count.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            refuse_absurd(item, str(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            refuse_absurd(item, key)
    elif isinstance(value, (int, float)) and key.endswith(_COUNTS) and value > _MAX_COUNT:
        raise FormatError(f"{key!r} is {value}"[:200], where="config.json", expected=f"at most {_MAX_COUNT}")
