"""How fast this machine merges: a few pieces of the plan, done for real into a file without a name."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from suture.execute.forecast import Rates
from suture.execute.inputs import Inputs
from suture.execute.kernel import Formulas, Kernel
from suture.execute.local import stored
from suture.execute.pieces import Piece, computed_bytes
from suture.execute.staging import CHUNK_BYTES
from suture.factors import FactorReader
from suture.formats import TensorReader

N_PIECES = 3  # of each kind
SYNCED_BYTES = 64 << 20


def probe(pieces: Sequence[Piece], inputs: Inputs, folder: Path, formulas: Formulas | None, *, durable: bool) -> Rates:
    """Seconds a byte. The file is in `folder`, and gone when this returns.

    Raises:
        InputError: an input cannot be read. OSError: nothing can be written there.
    """
    computed = [p for p in pieces if any(map(computed_bytes, p.steps))][:N_PIECES]
    copied = [p for p in pieces if not any(map(computed_bytes, p.steps))][:N_PIECES]
    with (
        tempfile.TemporaryFile(dir=folder, buffering=0) as file,
        TensorReader.of(inputs.checkpoint) as base,
        TensorReader(inputs.adapter.folder) as adapter,
    ):
        factors = FactorReader(inputs.adapter.tensors, adapter)
        kernel = Kernel({"base": base, "adapter": adapter}, factors, formulas)
        rates = [_best(chosen, kernel, file.fileno()) for chosen in (copied, computed)]
        return Rates(rates[0], rates[1], _synced(file.fileno()) if durable else 0.0)


def _best(pieces: Iterable[Piece], kernel: Kernel, descriptor: int) -> float:
    """Seconds a byte of the fastest piece: the first one also warms up."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    taken = []
    for piece in pieces:
        begin = time.perf_counter()
        for step in piece.steps:
            for _, data in stored(step, kernel, buffer):
                os.pwrite(descriptor, data, 0)
        taken.append((time.perf_counter() - begin) / piece.n_bytes)
    return min(taken, default=0.0)


def _synced(descriptor: int) -> float:
    """Seconds a byte that the disk takes."""
    data = bytes(CHUNK_BYTES)
    for offset in range(0, SYNCED_BYTES, CHUNK_BYTES):
        os.pwrite(descriptor, data, offset)
    begin = time.perf_counter()
    os.fsync(descriptor)
    return (time.perf_counter() - begin) / SYNCED_BYTES
