"""sha256 of a file whose pieces are written in any order: the hash follows the prefix that is complete."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

Read: TypeAlias = Callable[[int, memoryview], None]


class Hash(Protocol):
    """What the workers tell of a file's bytes."""

    def feed(self, begin: int, data: memoryview) -> None: ...  # noqa: D102 - see PrefixHash
    def finish(self, begin: int) -> None: ...  # noqa: D102
    def advance(self, buffer: memoryview) -> bool: ...  # noqa: D102
    def hexdigest(self) -> str: ...  # noqa: D102


class NoHash:
    """Counts pieces instead of hashing them."""

    def __init__(self, bounds: Iterable[int]) -> None:
        self._left = {0, *bounds}
        self._left.discard(max(self._left))
        self._lock = threading.Lock()

    def feed(self, begin: int, data: memoryview) -> None:
        """Nothing to do."""

    def finish(self, begin: int) -> None:
        """The piece that begins there is written."""
        self._left.discard(begin)

    def advance(self, buffer: memoryview) -> bool:
        """True once, when all pieces are written."""
        return not self._left and self._lock.acquire(blocking=False)

    def hexdigest(self) -> str:
        """Nothing was hashed."""
        return ""


class PrefixHash:
    """The hash of one file, shared by the workers. Whoever finds it free carries it on; nobody waits.

    Args:
        bounds: where each piece begins, from 0 on, and the file's size.
        read: (offset, buffer) fills the buffer from the file.
    """

    def __init__(self, bounds: Iterable[int], read: Read) -> None:
        self._bounds = sorted({0, *bounds})
        self._read = read
        self._finished: set[int] = set()
        self._at = 0
        self._told = False
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
        """Hash as far as finished pieces reach, unless another thread is at it. True once: for who completes it."""
        # The holder looks again after letting go, so a piece that is finished in between is never left behind.
        while (self._end() or self._to_tell()) and self._lock.acquire(blocking=False):
            try:
                while end := self._end():
                    while self._at < end:
                        chunk = buffer[: end - self._at]
                        self._read(self._at, chunk)
                        self._update(chunk)
                if self._to_tell():
                    self._told = True
                    return True
            finally:
                self._lock.release()
        return False

    def hexdigest(self) -> str:
        """The sha256 of the whole file."""
        assert self._at == self._bounds[-1], "the file is not written to its end"
        return self._sha256.hexdigest()

    def _update(self, data: memoryview) -> None:
        self._sha256.update(data)
        self._at += data.nbytes

    def _end(self) -> int:
        """End of the finished piece that the hash is in, or 0."""
        k = bisect_right(self._bounds, self._at) - 1
        return self._bounds[k + 1] if self._bounds[k] in self._finished else 0

    def _to_tell(self) -> bool:
        return self._at == self._bounds[-1] and not self._told
