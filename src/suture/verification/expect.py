"""What base + adapter gives, in float64: rows of one operation, recomputed from the inputs by the methods' formulas."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from suture import compiled
from suture.formats.quantized.decoder import Decoder
from suture.methods import METHODS
from suture.methods.base import Factors
from suture.values import Adapter, Checkpoint, Operation, TensorInfo, Term, View
from suture.verification import reading
from suture.verification.bounds import Step, bound
from suture.verification.reading import Bytes, Floats
from suture.verification.rounding import FLOAT32_UNIT, FORMATS

BLOCK_VALUES = 1 << 16  # 512 KiB of float64: what the caches of a core hold
COMPILED_BLOCK_VALUES = 1 << 18  # read at once where a compiled judge needs no arrays of that size


@dataclass(frozen=True, slots=True)
class Inputs:
    """The two folders a merge starts from."""

    base: Path
    adapter: Path
    factors: Mapping[str, TensorInfo]
    decoder: Decoder
    kept: reading.Kept = field(default_factory=reading.Kept, compare=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint, adapter: Adapter) -> Inputs:
        """The folders of what was read."""
        read = functools.partial(reading.raw_into, checkpoint.folder)
        return cls(checkpoint.folder, adapter.folder, adapter.tensors, Decoder(checkpoint.packed, read))

    def folder(self, operation: Operation) -> Path:
        """Where the operation's source lies."""
        return self.base if operation.source.origin == "base" else self.adapter

    def source(self, operation: Operation, start: int, stop: int) -> Bytes:
        """Bytes start:stop of the operation's source; of a packed weight, those of the dense one."""
        tensor = operation.source.tensor
        if tensor.is_stored:
            return reading.raw(self.folder(operation), tensor, start, stop)
        data = np.empty(stop - start, np.uint8)
        self.decoder.read_into(tensor, start, data.data)
        return data


@dataclass(frozen=True, slots=True)
class Loaded:
    """A term, or the part of it that changes the rows looked at, with its factors in memory; `sizes` gives their
    absolute values, which only doubtful rows need.
    """

    term: Term
    factors: Factors
    sizes: Callable[[], Factors]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows to look at, and the terms that change some of them."""

    rows: slice
    terms: tuple[Loaded, ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """Rows of one tensor: before (`source`) and after (`exact`) the update, what float32 may change, and |update|."""

    source: Floats
    exact: Floats
    error: Floats
    update: Floats


def walk(operation: Operation, inputs: Inputs, looks: Iterable[slice]) -> Iterator[Block]:
    """Each look, in order, with its terms. Factors stay in memory only while their rows are looked at."""
    loader = _Loader(operation, inputs)
    for look in looks:
        yield Block(look, loader.load(look))


class _Loader:
    """Reads the factors of one tensor's terms. What the next rows need as well is kept, widened or prepared."""

    def __init__(self, operation: Operation, inputs: Inputs) -> None:
        self._operation, self._inputs = operation, inputs
        self._wide: dict[View, Floats] = {}
        self._prepared: dict[int, Loaded] = {}

    def load(self, rows: slice) -> tuple[Loaded, ...]:
        """The terms that change some of the rows, in order."""
        terms = self._operation.terms
        self._prepared = {k: item for k, item in self._prepared.items() if item.term.stop > rows.start}
        before, self._wide = self._wide, {}
        found: list[Loaded] = []
        for k, term in enumerate(terms):
            if term.start < rows.stop and term.stop > rows.start:
                found.append(self._prepare(k, term, tuple(found), before) or self._plain(_cut(term, rows), before))
        return tuple(found)

    def _plain(self, term: Term, before: Mapping[View, Floats]) -> Loaded:
        factors = self._factors(term, before)
        sizes = functools.cache(lambda: {name: np.abs(values) for name, values in factors.items()})
        return Loaded(term, factors, sizes)

    def _prepare(self, k: int, term: Term, earlier: tuple[Loaded, ...], before: Mapping[View, Floats]) -> Loaded | None:
        """The whole term, after a pass over all of its rows; None where the method needs none."""
        prepare = METHODS[term.method].prepare
        if prepare is None or k in self._prepared:
            return self._prepared.get(k)
        plain = self._factors(term, before)

        def all_rows() -> Iterator[tuple[slice, Floats]]:
            return _all_rows(self._operation, self._inputs, earlier, term)

        def sizes() -> Factors:
            rows = ((i, np.abs(w)) for i, w in all_rows())
            return prepare(lambda: rows, {name: np.abs(x) for name, x in plain.items()}, abs(term.scale))

        factors = prepare(all_rows, plain, term.scale)
        self._prepared[k] = Loaded(term, factors, functools.cache(sizes))
        return self._prepared[k]

    def _factors(self, term: Term, before: Mapping[View, Floats]) -> Factors:
        factors: dict[str, npt.NDArray[Any]] = {"rows": np.array(term.rows_changed, np.int64)}
        for name, view in term.factors.items():
            if view not in self._wide:
                self._wide[view] = before[view] if view in before else self._read(view)
            factors[name] = self._wide[view]
        return factors

    def _read(self, view: View) -> Floats:
        tensor = self._inputs.factors[view.tensor]
        return reading.cut(self._inputs.kept.whole(self._inputs.adapter, tensor), tensor.dtype, view)


def _cut(term: Term, rows: slice) -> Term:
    """The part of a term that falls into the rows."""
    first, last = max(rows.start, term.start), min(rows.stop, term.stop)
    if (first, last) == (term.start, term.stop) or term.rows_changed:
        return term
    axes = METHODS[term.method].axes
    factors = {
        name: view.cut(axes[name].index("rows"), first - term.start, last - term.start)
        if "rows" in axes.get(name, ())
        else view
        for name, view in term.factors.items()
    }
    return replace(term, factors=factors, start=first, stop=last)


def _all_rows(
    operation: Operation, inputs: Inputs, before: tuple[Loaded, ...], term: Term
) -> Iterator[tuple[slice, Floats]]:
    """All rows that a term changes, as the terms before it leave them."""
    for block in blocks(term.start, term.stop, operation.cols):
        yield slice(block.start - term.start, block.stop - term.start), exact_rows(operation, before, inputs, block)


def blocks(start: int, stop: int, cols: int) -> Iterator[slice]:
    """Row ranges of about as many values as are best looked at in one go."""
    n_values = BLOCK_VALUES if compiled.why_not() else COMPILED_BLOCK_VALUES
    size = max(1, n_values // max(cols, 1))
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def source_bytes(operation: Operation, inputs: Inputs, rows: slice) -> Bytes:
    """Those rows of the operation's source as they are stored."""
    first, width = operation.source.row, operation.cols * reading.BITS[operation.source.tensor.dtype] // 8
    return inputs.source(operation, (first + rows.start) * width, (first + rows.stop) * width)


def _source(operation: Operation, inputs: Inputs, rows: slice) -> Floats:
    data = source_bytes(operation, inputs, rows)
    return reading.floats(data, operation.source.tensor.dtype).reshape(-1, operation.cols)


def exact_rows(operation: Operation, terms: Iterable[Loaded], inputs: Inputs, rows: slice) -> Floats:
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


def touched(operation: Operation, block: Block) -> npt.NDArray[np.bool_]:
    """The rows of a block that the adapter has a say in: those of terms, and all of a tensor of its own, (rows,)."""
    found = np.full(block.rows.stop - block.rows.start, operation.source.origin == "adapter")
    for _, here, _ in _meeting(block.terms, block.rows):
        found[here] = True
    return found


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
