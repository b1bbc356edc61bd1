"""What base + adapter gives, in float64: rows of one operation, recomputed from the inputs by the methods' formulas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suture.methods import METHODS
from suture.methods.base import Factors
from suture.values import Adapter, Checkpoint, Operation, TensorInfo, Term
from suture.verify import reading
from suture.verify.bounds import Step, bound
from suture.verify.reading import Bytes, Floats
from suture.verify.rounding import FLOAT32_UNIT, FORMATS

BLOCK_VALUES = 1 << 17  # 1 MiB of float64: what a core's cache holds


@dataclass(frozen=True, slots=True)
class Inputs:
    """The two folders a merge starts from."""

    base: Path
    adapter: Path
    factors: Mapping[str, TensorInfo]

    @classmethod
    def of(cls, checkpoint: Checkpoint, adapter: Adapter) -> Inputs:
        """The folders of what was read."""
        return cls(checkpoint.folder, adapter.folder, adapter.tensors)

    def folder(self, operation: Operation) -> Path:
        """Where the operation's source lies."""
        return self.base if operation.source.origin == "base" else self.adapter


@dataclass(frozen=True, slots=True)
class Loaded:
    """A term with its factors in memory; `sizes` are their absolute values."""

    term: Term
    factors: Factors
    sizes: Factors


@dataclass(frozen=True, slots=True)
class Expected:
    """Rows of one tensor: before (`source`) and after (`exact`) the update, what float32 may change, and |update|."""

    source: Floats
    exact: Floats
    error: Floats
    update: Floats


def walk(operation: Operation, inputs: Inputs, looks: Iterable[slice]) -> Iterator[tuple[slice, Expected]]:
    """Each look, in order, with what is expected there. Factors stay in memory only while their rows are looked at."""
    loaded: dict[int, Loaded] = {}
    for look in looks:
        loaded = {k: item for k, item in loaded.items() if item.term.stop > look.start}
        for k, term in enumerate(operation.terms):
            if k not in loaded and term.start < look.stop and term.stop > look.start:
                loaded[k] = _load(operation, inputs, term, tuple(loaded[n] for n in sorted(loaded) if n < k))
        yield look, _expect(operation, tuple(loaded[k] for k in sorted(loaded)), inputs, look)


def _load(operation: Operation, inputs: Inputs, term: Term, before: tuple[Loaded, ...]) -> Loaded:
    """A term's factors, prepared by a pass over all rows where the method needs one."""
    factors: Factors = {k: reading.factor(inputs.adapter, inputs.factors, v) for k, v in term.factors.items()}
    factors = {**factors, "rows": np.array(term.rows_changed, np.int64)}
    sizes: Factors = {k: np.abs(v) for k, v in factors.items()}
    prepare = METHODS[term.method].prepare
    if prepare is not None:
        factors = prepare(lambda: _all_rows(operation, inputs, before, term), factors, term.scale)
        absolute = ((i, np.abs(w)) for i, w in _all_rows(operation, inputs, before, term))
        sizes = prepare(lambda: absolute, sizes, abs(term.scale))
    return Loaded(term, factors, sizes)


def _all_rows(
    operation: Operation, inputs: Inputs, before: tuple[Loaded, ...], term: Term
) -> Iterator[tuple[slice, Floats]]:
    """All rows that a term changes, as the terms before it leave them."""
    for block in blocks(term.start, term.stop, operation.cols):
        rows = _expect(operation, before, inputs, block).exact
        yield slice(block.start - term.start, block.stop - term.start), rows


def blocks(start: int, stop: int, cols: int) -> Iterator[slice]:
    """Row ranges of about BLOCK_VALUES values."""
    size = max(1, BLOCK_VALUES // max(cols, 1))
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def source_bytes(operation: Operation, inputs: Inputs, rows: slice) -> Bytes:
    """Those rows of the operation's source as they are stored."""
    tensor, first = operation.source.tensor, operation.source.row
    width = operation.cols * reading.BITS[tensor.dtype] // 8
    return reading.raw(inputs.folder(operation), tensor, (first + rows.start) * width, (first + rows.stop) * width)


def _expect(operation: Operation, loaded: tuple[Loaded, ...], inputs: Inputs, rows: slice) -> Expected:
    """The exact values of rows of the output tensor, before they are rounded to its dtype."""
    dtype = operation.source.tensor.dtype
    source = reading.floats(source_bytes(operation, inputs, rows), dtype).reshape(-1, operation.cols)
    unit = FORMATS["F64"].unit if "F64" in (dtype, operation.dtype) else FLOAT32_UNIT
    exact, error, update = source.copy(), np.zeros_like(source), np.zeros_like(source)
    for item in loaded:
        first, last = max(rows.start, item.term.start), min(rows.stop, item.term.stop)
        if first >= last:
            continue
        here = slice(first - rows.start, last - rows.start)
        of_term = slice(first - item.term.start, last - item.term.start)
        formula = METHODS[item.term.method].rows
        assert formula is not None
        after = formula(exact[here].copy(), item.factors, item.term.scale, of_term)
        step = Step(item.term, item.factors, item.sizes, exact[here], after, of_term)
        limits = bound(step, error[here], unit)
        exact[here], error[here] = after, limits.error
        update[here] += limits.update
    return Expected(source, exact, error, update)
