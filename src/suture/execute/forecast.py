"""What a merge will need: memory from the plan alone, time from the plan and what a probe measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from suture.errors import UsageError
from suture.execute.kernel import working_dtype
from suture.execute.local import count_workers
from suture.execute.pieces import Piece, computed_bytes
from suture.execute.staging import CHUNK_BYTES
from suture.factors import KEPT_BYTES
from suture.formats.dtypes import DTYPES
from suture.methods import METHODS
from suture.values import Operation, Plan, Running

# Measured: Python with numpy and Suture's modules; of each tensor its name, its places and its header's text.
PROCESS_BYTES = 44 << 20
TENSOR_BYTES = 6 << 10
QUANTISER_BYTES = 450 << 20  # torch and bitsandbytes
QUANTISER_ITEM = 24  # bytes a value, while a block is quantised
START_SECONDS = 0.3
CHECKING = 1.15  # the sampled verification, as a share of the merge


def memory(plan: Plan, workers: int) -> int:
    """Bytes that a merge with so many workers holds at its peak: an upper estimate."""
    sizes = [_of_worker(op.weight) + _held(op) for op in plan.operations if op.terms or op.part_of]
    worker = CHUNK_BYTES + max(sizes, default=0)
    cut_finely = any(len(op.terms) > 1 for op in plan.operations)
    quantises = any(op.part_of for op in plan.operations)
    fixed = PROCESS_BYTES + cut_finely * KEPT_BYTES + quantises * QUANTISER_BYTES
    return fixed + len(plan.operations) * TENSOR_BYTES + workers * worker


def _held(op: Operation) -> int:
    """What a quantised weight takes besides: all of its parts, and the quantiser's arrays for a block."""
    if not op.part_of:
        return 0
    rows = min(op.weight.rows, 2 * op.block_rows)
    return op.source.tensor.n_values * 5 // 4 + QUANTISER_ITEM * rows * op.weight.cols


def _of_worker(op: Operation) -> int:
    """Buffers of a block and factors of a tensor, in the type that is computed in."""
    item = working_dtype(op).itemsize
    rows = min(op.rows, 2 * op.block_rows)
    stored = DTYPES[op.dtype].bits // 8 + DTYPES[op.source.tensor.dtype].bits // 8
    block = rows * op.cols * (stored + 3 * item)  # as stored, widened, the product, the rounding's scratch
    factors = max((sum(math.prod(view.size) for view in t.factors.values()) for t in op.terms), default=0)
    prepared = any(METHODS[t.method].prepare is not None for t in op.terms)
    return block + 2 * factors * item + prepared * op.cols * item


def workers_within(plan: Plan, running: Running, n_pieces: int) -> int:
    """As many workers as asked for, or fewer to stay within the memory that is allowed.

    Raises:
        UsageError: one is too many.
    """
    workers = count_workers(running.workers, n_pieces)
    limit = running.max_memory
    while limit is not None and workers > 1 and memory(plan, workers) > limit:
        workers -= 1
    if limit is not None and (least := memory(plan, workers)) > limit:
        raise UsageError(
            f"this merge needs about {least / 2**20:,.0f} MiB of memory with one worker",
            where="--max-memory",
            expected=f"at least that; {limit / 2**20:,.0f} MiB are allowed",
            do="Allow more. Nothing was written.",
        )
    return workers


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds that one worker takes for a byte."""

    copied: float
    computed: float
    synced: float


def seconds(pieces: Iterable[Piece], rates: Rates, workers: int) -> float:
    """How long a merge takes at these rates."""
    work = n_bytes = 0.0
    for piece in pieces:
        computed = sum(map(computed_bytes, piece.steps))
        work += computed * rates.computed + (piece.n_bytes - computed) * rates.copied
        n_bytes += piece.n_bytes
    return START_SECONDS + max(work / workers * CHECKING, n_bytes * rates.synced)
