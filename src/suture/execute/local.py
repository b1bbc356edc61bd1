"""The engine for one machine: threads that share a plan's pieces, each on an output file of its own as long as it can.

Which thread does what changes no byte: a piece's bytes depend on the plan alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeAlias

from suture.errors import Interrupted, SutureError
from suture.execute.kernel import Kernel
from suture.execute.pieces import Part, Piece, Rows, Span, Step
from suture.execute.prefix import Hash
from suture.execute.staging import CHUNK_BYTES, Stage
from suture.execute.stop import Stop

POLL_SECONDS = 0.1

Progress: TypeAlias = Callable[[int], None]


class Queue:
    """The pieces that are left. A worker stays on its file, then takes a fresh one, then helps where most is left."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._left: dict[str, deque[Piece]] = {}
        for piece in pieces:
            self._left.setdefault(piece.file, deque()).append(piece)
        self._cost = {file: sum(u.cost for u in left) for file, left in self._left.items()}
        self._touched: set[str] = set()
        self._lock = threading.Lock()

    def take(self, last: str) -> Piece | None:
        """The next piece for a worker whose last one was of the file `last`; None when all are taken."""
        with self._lock:
            file = last if self._left.get(last) else self._best()
            if file is None:
                return None
            self._touched.add(file)
            piece = self._left[file].popleft()
            self._cost[file] -= piece.cost
            return piece

    def _best(self) -> str | None:
        open_files = [file for file, left in self._left.items() if left]
        return min(open_files, key=lambda f: (f in self._touched, -self._cost[f], f), default=None)


class Worker:
    """One thread's part: its buffers, the bytes it has written, and the tensor it has in hand."""

    def __init__(self, stage: Stage, kernel: Kernel, hashes: Mapping[str, Hash]) -> None:
        self.written = 0
        self.at = ""
        self._stage = stage
        self._kernel = kernel
        self._hashes = hashes
        self._chunk = memoryview(bytearray(CHUNK_BYTES))

    def run(self, queue: Queue) -> None:
        """Work until no piece is left, and every file is hashed."""
        file = ""
        while (piece := queue.take(file)) is not None:
            file = piece.file
            for step in piece.steps:
                self._step(file, step)
            self._stage.finish(piece.number)
            self._hashes[file].finish(piece.begin)
            self._settle(file)
        for file in self._hashes:
            self._settle(file)

    def _step(self, file: str, step: Step) -> None:
        self.at = f"{file}: {step.source.name if isinstance(step, Span) else step.op.tensor}"
        for offset, data in stored(step, self._kernel, self._chunk):
            self._write(file, offset, data)

    def _write(self, file: str, offset: int, data: memoryview) -> None:
        self._stage.write(file, offset, data)
        self._hashes[file].feed(offset, data)
        self.written += data.nbytes

    def _settle(self, file: str) -> None:
        self.at = file
        if self._hashes[file].advance(self._chunk):
            self._stage.sync(file, self._hashes[file].hexdigest())


def stored(step: Step, kernel: Kernel, buffer: memoryview) -> Iterator[tuple[int, memoryview]]:
    """What a step writes: offsets in the output file, and bytes that are valid until the next ones."""
    if isinstance(step, Rows):
        for offset, values in kernel.run(step):
            yield offset, values.reshape(-1).view("u1").data
        return
    if isinstance(step, Part):
        yield step.op.begin, kernel.part(step.op).reshape(-1).view("u1").data
        return
    reader = kernel.readers[step.origin]
    for done in range(0, step.source.n_bytes, len(buffer)):
        chunk = buffer[: step.source.n_bytes - done]
        reader.read_into(step.source, done, chunk)
        yield step.begin + done, chunk


def count_workers(wanted: int | None, n_pieces: int) -> int:
    """As many threads as cores, unless told; never more than there is work for."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(wanted or cores, n_pieces))


def work(workers: Sequence[Worker], queue: Queue, stop: Stop, progress: Progress | None) -> None:
    """Run the workers to the end. The first failure stops all of them and names the tensor it happened at.

    Raises:
        Interrupted: somebody else raised the flag.
        SutureError: what stopped a worker.
    """
    reported = 0
    with ThreadPoolExecutor(len(workers), thread_name_prefix="suture") as pool:
        futures = {pool.submit(w.run, queue): w for w in workers}
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, POLL_SECONDS, FIRST_EXCEPTION)
                if any(f.exception() for f in done):
                    stop.requested = True
                written = sum(w.written for w in workers)
                if progress is not None and written > reported:
                    progress(written - reported)
                reported = written
        finally:
            if waiting:
                stop.requested = True
    failures = [(error, worker.at) for f, worker in futures.items() if (error := f.exception()) is not None]
    if failures:
        # Workers that were told to stop say Interrupted; the reason is the one that does not.
        error, at = min(failures, key=lambda failure: isinstance(failure[0], Interrupted))
        raise _named(error, at)


def _named(error: BaseException, at: str) -> BaseException:
    """A worker's failure as it is if it says where it happened, else with the tensor's name."""
    if isinstance(error, SutureError):
        return error
    named = SutureError(f"{type(error).__name__}: {error}", where=at, do="Please report this. Nothing was written.")
    named.__cause__ = error
    return named
