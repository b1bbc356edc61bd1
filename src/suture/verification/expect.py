"""What base + adapter gives, in float64: rows of one operation, recomputed from the inputs by the methods' formulas."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suture.methods import METHODS
from suture.methods.base import Factors
from suture.values import Adapter, Checkpoint, Operation, TensorInfo, Term
from suture.verification import reading
from suture.verification.bounds import Step, bound
from suture.verification.reading import Bytes, Floats
from suture.verification.rounding import FLOAT32_UNIT, FORMATS

BLOCK_VALUES = 1 << 16  # 512 KiB of float64: what the caches of a core hold


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
    """A term with its factors in memory; `sizes` gives their absolute values, which only doubtful rows need."""

    term: Term
    factors: Factors
    sizes: Callable[[], Factors]


@dataclass(frozen=True, slots=True)
class Block:
    """The exact values of some rows, and the terms that they were computed with."""

    rows: slice
    exact: Floats
    terms: tuple[Loaded, ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """Rows of one tensor: before (`source`) and after (`exact`) the update, what float32 may change, and |update|."""

    source: Floats
    exact: Floats
    error: Floats
    update: Floats


def walk(operation: Operation, inputs: Inputs, looks: Iterable[slice]) -> Iterator[Block]:
    """Each look, in order, with its exact values. Factors stay in memory only while their rows are looked at."""
    loaded: dict[int, Loaded] = {}
    stored: dict[str, Bytes] = {}
    for look in looks:
        loaded = {k: item for k, item in loaded.items() if item.term.stop > look.start}
        for k, term in enumerate(operation.terms):
            if k not in loaded and term.start < look.stop and term.stop > look.start:
                before = tuple(loaded[n] for n in sorted(loaded) if n < k)
                loaded[k] = _load(operation, inputs, term, before, stored)
        terms = tuple(loaded[k] for k in sorted(loaded))
        yield Block(look, _exact(operation, terms, inputs, look), terms)


def _load(
    operation: Operation, inputs: Inputs, term: Term, before: tuple[Loaded, ...], stored: dict[str, Bytes]
) -> Loaded:
    """A term's factors, prepared by a pass over all rows where the method needs one.

    `stored` keeps the adapter's tensors: those of fused experts hold the factors of many terms.
    """
    factors: Factors = {"rows": np.array(term.rows_changed, np.int64)}
    for name, view in term.factors.items():
        tensor = inputs.factors[view.tensor]
        if view.tensor not in stored:
            stored[view.tensor] = reading.raw(inputs.adapter, tensor, 0, tensor.n_bytes)
        factors = {**factors, name: reading.cut(stored[view.tensor], tensor.dtype, view)}
    plain, prepare = factors, METHODS[term.method].prepare
    if prepare is not None:
        factors = prepare(lambda: _all_rows(operation, inputs, before, term), factors, term.scale)

    def sizes() -> Factors:
        absolute = {name: np.abs(values) for name, values in plain.items()}
        if prepare is None:
            return absolute
        rows = ((i, np.abs(w)) for i, w in _all_rows(operation, inputs, before, term))
        return prepare(lambda: rows, absolute, abs(term.scale))

    return Loaded(term, factors, functools.cache(sizes))


def _all_rows(
    operation: Operation, inputs: Inputs, before: tuple[Loaded, ...], term: Term
) -> Iterator[tuple[slice, Floats]]:
    """All rows that a term changes, as the terms before it leave them."""
    for block in blocks(term.start, term.stop, operation.cols):
        yield slice(block.start - term.start, block.stop - term.start), _exact(operation, before, inputs, block)


def blocks(start: int, stop: int, cols: int) -> Iterator[slice]:
    """Row ranges of about BLOCK_VALUES values."""
    size = max(1, BLOCK_VALUES // max(cols, 1))
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def source_bytes(operation: Operation, inputs: Inputs, rows: slice) -> Bytes:
    """Those rows of the operation's source as they are stored."""
    tensor, first = operation.source.tensor, operation.source.row
    width = operation.cols * reading.BITS[tensor.dtype] // 8
    return reading.raw(inputs.folder(operation), tensor, (first + rows.start) * width, (first + rows.stop) * width)


def _source(operation: Operation, inputs: Inputs, rows: slice) -> Floats:
    data = source_bytes(operation, inputs, rows)
    return reading.floats(data, operation.source.tensor.dtype).reshape(-1, operation.cols)


def _exact(operation: Operation, terms: Iterable[Loaded], inputs: Inputs, rows: slice) -> Floats:
    """The exact values of rows of the output tensor, before they are rounded to its dtype."""
    exact = _source(operation, inputs, rows)
    for item, here, of_term in _meeting(terms, rows):
        exact[here] = _apply(item, exact[here], of_term)
    return exact


def _meeting(terms: Iterable[Loaded], rows: slice) -> Iterator[tuple[Loaded, slice, slice]]:
    """The terms that change some of the rows: where in the rows, and where counted from the term's first row."""
    for item in terms:
        first, last = max(rows.start, item.term.start), min(rows.stop, item.term.stop)
        if first < last:
            here = slice(first - rows.start, last - rows.start)
            yield item, here, slice(first - item.term.start, last - item.term.start)


def _apply(item: Loaded, w: Floats, rows: slice) -> Floats:
    formula = METHODS[item.term.method].rows
    assert formula is not None
    return formula(w, item.factors, item.term.scale, rows)


def expect(operation: Operation, terms: Iterable[Loaded], inputs: Inputs, rows: slice) -> Expected:
    """The exact values of rows, and by how much float32 may miss them."""
    source = _source(operation, inputs, rows)
    unit = FORMATS["F64"].unit if "F64" in (operation.source.tensor.dtype, operation.dtype) else FLOAT32_UNIT
    exact, error, update = source.copy(), np.zeros_like(source), np.zeros_like(source)
    for item, here, of_term in _meeting(terms, rows):
        after = _apply(item, exact[here].copy(), of_term)
        step = Step(item.term, item.factors, item.sizes(), exact[here], after, of_term)
        limits = bound(step, error[here], unit)
        exact[here], error[here] = after, limits.error
        update[here] += limits.update
    return Expected(source, exact, error, update)
