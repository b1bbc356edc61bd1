"""What base and adapter tell together: how far each matrix moves, and where rows are that should have been trained.

Rows are sampled: STRIPES runs of STRIPE_ROWS rows, evenly spread, always the same ones. A matrix of 8B parameters'
model costs a few milliseconds, and no more than some tens of MiB are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from suture.factors import FactorReader
from suture.formats import TensorReader
from suture.formats.dtypes import DTYPES, SIXTEEN
from suture.measures.apart import Apart, apart
from suture.measures.moves import Broken, Move, Turn, is_measured, is_scanned, is_turned, move, moved, scan, turn
from suture.measures.new_rows import NewRows, new_rows
from suture.measures.places import Places, places
from suture.measures.rounding import Rounded, spread
from suture.measures.sampling import Files
from suture.measures.survival import Survival, survival
from suture.values import Adapter, Arch, Checkpoint, KeptUpdates, Operation, Resolved, TensorInfo

__all__ = [
    "Apart",
    "Broken",
    "Measures",
    "Move",
    "NewRows",
    "Places",
    "Survival",
    "Turn",
    "kept",
    "measure",
    "survival",
]

BLOCK_VALUES = 1 << 20
FEW_MATRICES, FEW_STRIPES = 16, 2  # what every merge can afford


@dataclass(frozen=True, slots=True)
class Measures:
    """All that was measured."""

    moves: tuple[Move, ...]
    still: tuple[str, ...]  # tensors of the adapter that were trained in full and equal the base's values
    new_rows: tuple[NewRows, ...] = ()
    turns: tuple[Turn, ...] = ()  # of DoRA
    broken: tuple[Broken, ...] = ()
    places: tuple[Places, ...] = ()
    apart: tuple[Apart, ...] = ()


def measure(
    checkpoint: Checkpoint,
    adapter: Adapter,
    arch: Arch,
    resolved: Resolved,
    operations: Sequence[Operation],
    n_tokens: int | None,
) -> Measures:
    """Measure base and adapter on sampled rows.

    Args:
        operations: of the draft; those that change nothing are passed over.
        n_tokens: of the adapter's tokenizer, if it brings one: rows beyond are padding.
    """
    with TensorReader.of(checkpoint) as base, TensorReader(adapter.folder) as tuned:
        files = Files(base, tuned, FactorReader(adapter.tensors, tuned))
        stored = _stored(checkpoint, arch)
        # Values that overflow or are not numbers are counted in `broken`; elsewhere they must only not disturb.
        with np.errstate(all="ignore"):
            measured = [move(op, files) for op in operations if is_measured(op, adapter)]
            others = (op for op in operations if is_scanned(op) and not is_measured(op, adapter))
            broken = (*(b for _, b in measured), *(scan(op, files) for op in others))
            return Measures(
                tuple(m for m, _ in measured),
                tuple(_still(resolved, adapter, arch, stored, files)),
                tuple(new_rows(resolved, adapter, arch, files, n_tokens)),
                tuple(turn(op, files) for op in operations if is_turned(op, adapter)),
                tuple(b for b in broken if b.n_before or b.n_after),
                tuple(places(resolved, adapter, arch, stored, files)),
                tuple(apart(operations, checkpoint.packed, (m for m, _ in measured), files)),
            )


def kept(checkpoint: Checkpoint, adapter: Adapter, operations: Sequence[Operation]) -> KeptUpdates | None:
    """What rounding leaves of the updates, estimated from two runs of rows of some matrices.

    Returns:
        None where no matrix with a low-rank update is written in 16 bits, or nothing moves; and where weights are
        quantised on the way: nested scales follow from whole weights, too much to read for a look at some rows.
    """
    if checkpoint.quantization is not None and not checkpoint.quantization.stored:
        return None
    candidates = (op for op in operations if op.dtype in SIXTEEN and not op.part_of)
    chosen = spread([op for op in candidates if is_measured(op, adapter)], FEW_MATRICES)
    if not chosen:
        return None
    update, nearest, stochastic = 0.0, Rounded(), Rounded()
    with TensorReader.of(checkpoint) as base, TensorReader(adapter.folder) as tuned, np.errstate(all="ignore"):
        files = Files(base, tuned, FactorReader(adapter.tensors, tuned))
        for op in chosen:
            sums, _, counts = moved(op, files, FEW_STRIPES)
            if not counts[1:].any():  # all is finite
                weight = op.rows / sums.n_rows
                update += weight * sums.update
                nearest += sums.nearest.times(weight)
                stochastic += sums.stochastic.times(weight)
    return KeptUpdates(nearest.kept(update), stochastic.kept(update), len(chosen)) if update else None


def _stored(checkpoint: Checkpoint, arch: Arch) -> dict[str, TensorInfo]:
    """Parameter → the tensor of the base that is all of it, for tied parameters too."""
    found = {
        part.param: checkpoint.tensors[part.tensor]
        for part in arch.parts
        if not part.index and part.rows is None and not part.transpose and part.tensor in checkpoint.tensors
    }
    for tie in arch.ties:
        held = next((found[member] for member in tie.members if member in found), None)
        found |= {member: held for member in tie.members if held is not None and member not in found}
    return found


def _still(
    resolved: Resolved, adapter: Adapter, arch: Arch, stored: Mapping[str, TensorInfo], files: Files
) -> Iterator[str]:
    """Tensors of modules_to_save and of trained tokens that are the base's, value for value."""
    named = tuple(adapter.config.get("modules_to_save") or ())
    for name, update in resolved.updates.items():
        base = stored.get(name)
        if base is None or not DTYPES[base.dtype].computable:
            continue
        full = update.replacement
        if full is not None and _is_named(name, named) and _same(full, range(base.shape[0]), base, files):
            yield full.name
        for term in update.terms:
            if term.method == "trainable_tokens":
                rows = adapter.tensors[term.factors["D"].tensor]
                ids = [term.start + row for row in term.rows_changed]
                if full is None and ids and _same(rows, ids, base, files):
                    yield rows.name


def _is_named(param: str, modules: tuple[str, ...]) -> bool:
    """True when modules_to_save names a module that the parameter lies in."""
    parts = param.split(".")[:-1]
    return bool(modules) and any(".".join(parts[: n + 1]).endswith(modules) for n in range(len(parts)))


def _same(tuned: TensorInfo, ids: Sequence[int], base: TensorInfo, files: Files) -> bool:
    """True when row k of the adapter's tensor holds the values of the base's row ids[k], for all k."""
    if tuned.shape[1:] != base.shape[1:] or not DTYPES[tuned.dtype].computable or not tuned.shape:
        return False
    cols = base.n_values // base.shape[0] if base.shape[0] else 1
    n_rows = min(tuned.shape[0], len(ids))
    step = max(1, BLOCK_VALUES // max(cols, 1)) if isinstance(ids, range) else 1
    for row in range(0, n_rows, step):
        stop = min(row + step, n_rows)
        theirs = files.base.rows(base, cols, ids[row], ids[row] + stop - row)
        if not np.array_equal(files.tuned.rows(tuned, cols, row, stop), theirs):
            return False
    return n_rows > 0
