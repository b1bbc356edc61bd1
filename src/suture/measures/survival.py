"""What is left of an update when the weight that it changes is quantised again.

    applied = D(Q(W + ΔW)) - W          W is what the base's codes stand for, Q quantises, D dequantises

A step of a 4-bit type is as large as most updates: a change that is much smaller moves hardly any code, and what moves
is as good as random. The direction tells that: cos(applied, ΔW) is 1 where all of it arrives, and 0 where none does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from suture.factors import FactorReader
from suture.formats import TensorReader
from suture.formats.dtypes import Array
from suture.formats.quantized.requantize import dequantized, quantizer_of
from suture.measures.moves import changed, is_measured
from suture.measures.sampling import F64, Files
from suture.values import Adapter, Checkpoint, Operation, TensorInfo

RUNS, RUN_VALUES = 4, 1 << 17  # of a weight; 512 KiB of float32 each


@dataclass(frozen=True, slots=True)
class Survival:
    """One weight that is quantised again, on its sampled rows. Norms are over those together."""

    tensor: str
    base: float  # ‖W‖
    update: float  # ‖ΔW‖
    applied: float  # ‖applied‖
    cosine: float  # of applied and ΔW; 1 where nothing is to move, and 0 where nothing moves
    error: float  # ‖applied - ΔW‖ / ‖ΔW‖; 0 where nothing is to move


def survival(checkpoint: Checkpoint, adapter: Adapter, operations: Sequence[Operation]) -> tuple[Survival, ...]:
    """Measure the packed weights that LoRA or DoRA changes, or that were trained in full.

    Raises:
        MissingExtra: the library that quantises them is not installed.
    """
    with TensorReader.of(checkpoint) as base, TensorReader(adapter.folder) as tuned:
        files = Files(base, tuned, FactorReader(adapter.tensors, tuned))
        chosen = (op for op in operations if op.tensor in base.packed and (_is_full(op) or is_measured(op, adapter)))
        with np.errstate(all="ignore"):
            found = (_measured(op, checkpoint.tensors[op.tensor], files) for op in chosen)
            return tuple(one for one in found if one.update)


def _is_full(op: Operation) -> bool:
    """True for a weight that the adapter brings as a whole."""
    return op.source.origin == "adapter" and not op.terms


def _measured(op: Operation, info: TensorInfo, files: Files) -> Survival:
    packed = files.base.packed[op.tensor]
    quantizer, read = quantizer_of(packed), files.base.read_into
    assert quantizer is not None
    encode = quantizer.open(info, packed, read)
    sums = np.zeros(5)
    for rows in _runs(op, quantizer.granule(info, packed)):
        w = files.base.rows(info, op.cols, rows.start, rows.stop).astype(F64)
        v = files.source(op, rows) if _is_full(op) else changed(op, w, rows, files)
        parts = encode(rows.start, v.astype(np.float32))
        after = dequantized(info, packed, read, rows.stop - rows.start, parts)
        sums += _products(w, v - w, after - w)
    base, update, applied, common, missed = sums
    cosine = common / (update * applied) ** 0.5 if update and applied else float(not update)
    return Survival(
        op.tensor, base**0.5, update**0.5, applied**0.5, cosine, (missed / update) ** 0.5 if update else 0.0
    )


def _products(w: Array, delta: Array, applied: Array) -> Array:
    missed = applied - delta
    pairs: Iterable[tuple[Array, Array]] = (
        (w, w),
        (delta, delta),
        (applied, applied),
        (applied, delta),
        (missed, missed),
    )
    return np.array([float((x * y).sum()) for x, y in pairs])


def _runs(op: Operation, granule: int) -> Iterator[slice]:
    """Runs of whole granules, evenly spread; all of a small weight."""
    size = granule * max(1, RUN_VALUES // (granule * op.cols))
    n = -(-op.rows // size)
    for k in sorted({i * (n - 1) // max(RUNS - 1, 1) for i in range(RUNS)}):
        yield slice(k * size, min((k + 1) * size, op.rows))
