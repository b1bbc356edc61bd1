"""Reading what may be broken: a refusal is written down instead of raised."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TypeVar

from suture.errors import InputError

T = TypeVar("T")


def attempt(bad: MutableMapping[str, str], name: str, read: Callable[[], T]) -> T | None:
    """The result of reading a file; None, and an entry under `name` in `bad`, where that is refused."""
    try:
        return read()
    except InputError as error:
        bad[name] = error.found
        return None
