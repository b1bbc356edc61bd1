"""sha256 of a file whose pieces are written in any order: the hash follows the prefix that is complete."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import TypeAlias

Read: TypeAlias = Callable[[int, memoryview], None]


class PrefixHash:
    """The hash of one file, shared by the workers. Whoever finds it free carries it on; nobody waits.

    Args:
        bounds: where the pieces begin, from 0 on, and the file's size.
        read: (offset, buffer) fills the buffer from the file.
    """

    def __init__(self, bounds: Iterable[int], read: Read) -> None:
        self._bounds = sorted(set(bounds))
        self._read = read
        self._finished: set[int] = set()
        self._at = 0
        self._sha256 = hashlib.sha256()
        self._lock = threading.Lock()

    def feed(self, begin: int, data: memoryview) -> None:
        """Bytes that were just written: hashed at once if they are the next ones, which spares reading them again."""
        if begin == self._at and self._lock.acquire(blocking=False):
            try:
                if begin == self._at:
                    self._update(data)
            finally:
                self._lock.release()

    def finish(self, begin: int) -> None:
        """The piece that begins there is written."""
        self._finished.add(begin)

    def advance(self, buffer: memoryview) -> bool:
        """Hash as far as finished pieces reach, unless another thread is at it. True if this call reached the end."""
        was_complete = self._complete
        mine = False
        # The holder looks again after letting go, so a piece that is finished in between is never left behind.
        while self._piece_end() and self._lock.acquire(blocking=False):
            try:
                mine = True
                while end := self._piece_end():
                    self._hash_until(end, buffer)
            finally:
                self._lock.release()
        return mine and self._complete and not was_complete

    def hexdigest(self) -> str:
        """The sha256 of the whole file."""
        assert self._complete, "the file is not written to its end"
        return self._sha256.hexdigest()
