"""The kernel: rows of a tensor → float32 → the terms' formulas → rounded once. One row block of the plan at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from suture import compiled, noise
from suture.errors import FormatError, InputError, SutureError
from suture.execute.at_random import round_at_random
from suture.execute.inputs import Inputs
from suture.execute.pieces import Rows, row_bytes
from suture.execute.requantize import quantized
from suture.factors import FactorReader, cut_rows
from suture.formats import TensorReader
from suture.formats.dtypes import DTYPES, Array, compute_dtype, from_float, to_float
from suture.methods import METHODS
from suture.methods.base import Factors
from suture.planning.layout import blocks
from suture.values import Operation, Origin, Plan, Term

Readers: TypeAlias = Mapping[Origin, TensorReader]


class Bound(NamedTuple):
    """A term and its factors."""

    term: Term
    f: Factors

    def of(self, rows: slice) -> Bound:
        """The same on some of the term's rows."""
        first, last = rows.start - self.term.start, rows.stop - self.term.start
        axes = METHODS[self.term.method].axes
        cut = {name: x[first:last] if axes.get(name, ("",))[0] == "rows" else x for name, x in self.f.items()}
        return Bound(self.term, cut)


class Formulas(Protocol):
    """What computes LoRA and DoRA on stored values of 16 and 32 bits: see `fused.Fused`."""

    def pack(self, f: Factors) -> Factors: ...  # noqa: D102 - see there
    def lora(self, w: Array, out: Array, f: Factors, s: float, dtypes: tuple[str, str]) -> None: ...  # noqa: D102
    def dora(self, v: Array, out: Array, m: Array, dtype: str) -> None: ...  # noqa: D102


class Kernel:
    """Computes row blocks in buffers that are reused; each worker has its own.

    Args:
        formulas: used for all that they know; numpy for the rest, or for everything.
    """

    def __init__(self, readers: Readers, factors: FactorReader, formulas: Formulas | None) -> None:
        self.readers = readers
        self._factors = factors
        self._formulas = formulas
        self._buffers: dict[str, Array] = {}
        self._prepared: dict[tuple[str, int], Factors] = {}
        self._parts: tuple[str, Mapping[str, Array]] = "", {}

    def run(self, step: Rows) -> Iterator[tuple[int, Array]]:
        """Of each block, the offset in the output file and the stored values, valid until the next block."""
        terms = [self._bind(step, k, t) for k, t in enumerate(step.op.terms) if _overlap(t, step.start, step.stop)]
        formulas = self._formulas if _is_known(step.op, terms) else None
        if formulas is not None:
            terms = [Bound(t.term, formulas.pack(t.f)) for t in terms]
        for block in step.blocks():
            by_formulas = self._by_formulas(step.op, block, terms, formulas) if formulas else None
            values = self._block(step.op, block, terms) if by_formulas is None else by_formulas
            yield step.op.begin + block.start * row_bytes(step.op), values

    def part(self, op: Operation) -> Array:
        """A part of a weight that is quantised again. Those of the last weight are kept."""
        if self._parts[0] != op.part_of:
            self._parts = "", {}
            self._parts = op.part_of, quantized(op, self.readers["base"], self.run)
        return self._parts[1][op.tensor]

    def _by_formulas(self, op: Operation, block: slice, terms: list[Bound], formulas: Formulas) -> Array:
        """A block by the formulas: each run of rows with the same terms in one pass a term."""
        raw, dtype = self._raw(op, block), op.source.tensor.dtype
        out = raw if dtype == op.dtype else self._buffer("out", raw.shape, DTYPES[op.dtype].storage)
        for rows, here in _runs(block, terms):
            part = slice(rows.start - block.start, rows.stop - block.start)
            if here and op.seed is not None:
                v = self._buffer("between", raw[part].shape, np.dtype(np.float32))
                self._chain(raw[part], v, [t.of(rows) for t in here], (dtype, "F32"), formulas)
                _round(v, op, rows.start, out[part], at_random=True)
            elif here:
                self._chain(raw[part], out[part], [t.of(rows) for t in here], (dtype, op.dtype), formulas)
            elif dtype != op.dtype:
                _round(to_float(raw[part], dtype), op, rows.start, out[part], at_random=_is_random(op, here))
        return out

    def _chain(self, w: Array, out: Array, terms: list[Bound], dtypes: tuple[str, str], formulas: Formulas) -> None:
        """The terms one after the other, in float32 but for what is read first and written last."""
        at = w, dtypes[0]
        for k, (term, f) in enumerate(terms):
            last = k == len(terms) - 1
            end = (out, dtypes[1]) if last else (self._buffer("between", w.shape, np.dtype(np.float32)), "F32")
            if term.method == "dora":
                v = self._buffer("between", w.shape, np.dtype(np.float32))
                formulas.lora(at[0], v, f, term.scale, (at[1], "F32"))
                formulas.dora(v, end[0], f["m"], end[1])
            else:
                formulas.lora(at[0], end[0], f, term.scale, (at[1], end[1]))
            at = end

    def _block(self, op: Operation, block: slice, bound: list[Bound]) -> Array:
        w = self._read(op, block)
        # What overflows or is not a number in the inputs is so in the output; rules and verification speak of it.
        with np.errstate(all="ignore"):
            for term, f in bound:
                if _overlap(term, block.start, block.stop):
                    _apply(w, block, term, f, op)
        out = self._buffer("raw", w.shape, DTYPES[op.dtype].storage)
        if op.seed is None:
            return from_float(w, op.dtype, out, self._buffer("scratch", w.shape, np.dtype(np.uint32)))
        for rows, here in _runs(block, bound):
            part = slice(rows.start - block.start, rows.stop - block.start)
            _round(w[part], op, rows.start, out[part], at_random=_is_random(op, here))
        return out

    def _bind(self, step: Rows, k: int, term: Term) -> Bound:
        """The term cut to the step's rows, with its factors. What a method prepares is kept for the tensor."""
        op, dtype = step.op, working_dtype(step.op)
        method = METHODS[term.method]
        if method.prepare is None:
            cut = cut_rows(term, method.axes, step.start, step.stop)
            return Bound(cut, self._factors.factors(cut, dtype))
        key = (op.tensor, k)
        if key not in self._prepared:
            self._prepared = {other: f for other, f in self._prepared.items() if other[0] == op.tensor}
            with np.errstate(all="ignore"):
                f = method.prepare(
                    lambda: self._source_blocks(op, term), self._factors.factors(term, dtype), term.scale
                )
            self._prepared[key] = f
        return Bound(term, self._prepared[key])

    def _source_blocks(self, op: Operation, term: Term) -> Iterator[tuple[slice, Array]]:
        for block in blocks(op.rows, op.block_rows):
            first, last = max(block.start, term.start), min(block.stop, term.stop)
            if first < last:
                yield slice(first - term.start, last - term.start), self._read(op, slice(first, last))

    def _read(self, op: Operation, block: slice) -> Array:
        """Rows of the source, in the type that is computed in."""
        source, dtype = op.source.tensor, working_dtype(op)
        raw = self._raw(op, block)
        w = self._buffer("w", raw.shape, dtype)
        if dtype == compute_dtype(source.dtype):
            return to_float(raw, source.dtype, w)
        np.copyto(w, to_float(raw, source.dtype))
        return w

    def _raw(self, op: Operation, block: slice) -> Array:
        """Rows of the source, as they are stored."""
        source = op.source.tensor
        storage = DTYPES[source.dtype].storage
        assert storage is not None
        raw = self._buffer("raw", (block.stop - block.start, op.cols), storage)
        offset = (op.source.row + block.start) * op.cols * storage.itemsize
        self.readers[op.source.origin].read_into(source, offset, raw)
        return raw

    def _buffer(self, use: str, shape: tuple[int, ...], dtype: np.dtype[Any] | None) -> Array:
        assert dtype is not None
        n_bytes = math.prod(shape) * dtype.itemsize
        held = self._buffers.get(use)
        if held is None or held.nbytes < n_bytes:
            held = self._buffers[use] = np.empty(n_bytes, np.uint8)
        return held[:n_bytes].view(dtype).reshape(shape)


def _is_known(op: Operation, terms: list[Bound]) -> bool:
    """True where all that is to be done is LoRA and DoRA on types of 16 and 32 bits."""
    known = (op.source.tensor.dtype, op.dtype) in compiled.PAIRS and bool(terms)
    return known and all(t.method in ("lora", "dora") and t.rank for t, _ in terms)


def _runs(block: slice, terms: list[Bound]) -> Iterator[tuple[slice, list[Bound]]]:
    """The block's rows, cut where a term begins or ends, each with the terms that change it."""
    edges = {block.start, block.stop}
    for term, _ in terms:
        edges |= {row for row in (term.start, term.stop) if block.start < row < block.stop}
    for first, last in itertools.pairwise(sorted(edges)):
        yield slice(first, last), [t for t in terms if _overlap(t.term, first, last)]


def _is_random(op: Operation, terms: list[Bound]) -> bool:
    """True for rows with these terms if they are not rounded to nearest."""
    return op.seed is not None and (bool(terms) or op.source.origin == "adapter")


def _round(v: Array, op: Operation, row: int, out: Array, *, at_random: bool) -> None:
    """Values of the rows from `row` on, as they are stored."""
    if at_random:
        assert op.seed is not None
        round_at_random(v, op.dtype, noise.key(op.seed, op.tensor), row * op.cols, out)
    else:
        from_float(v, op.dtype, out)


def working_dtype(op: Operation) -> np.dtype[Any]:
    """float64 when the tensor comes from or goes to F64, else float32."""
    return np.dtype(np.float64 if "F64" in (op.dtype, op.source.tensor.dtype) else np.float32)


def check_computable(plan: Plan, inputs: Inputs) -> None:
    """Refuse, before anything is written, what the kernel could not compute.

    Raises:
        InputError: a tensor to be changed or cast is not of a float type that can be computed with.
        FormatError: a term is not what `suture.methods` can apply to the adapter.
    """
    for op in plan.operations:
        if op.is_copy:
            continue
        op = op.weight
        where = f"{op.source.tensor.file}: {op.tensor}"
        _require_computable(op.source.tensor.dtype, where)
        _require_computable(op.dtype, where)
        for term in op.terms:
            _check_term(op, term, inputs, where)


def _check_term(op: Operation, term: Term, inputs: Inputs, where: str) -> None:
    if term.method not in METHODS or METHODS[term.method].rows is None:
        raise FormatError(f"no method has the formula {term.method!r}", where=where, expected=", ".join(METHODS))
    if not 0 <= term.start <= term.stop <= op.rows:
        raise FormatError(f"a term for rows {term.start}:{term.stop}", where=where, expected=f"0:{op.rows}")
    for view in term.factors.values():
        info = inputs.adapter.tensors.get(view.tensor)
        if info is None or math.prod(view.shape) != info.n_values:
            raise FormatError(f"the adapter has no {view.tensor} {list(view.shape)}", where=where, do="Plan again.")
        _require_computable(info.dtype, f"{info.file}: {info.name}")


def _require_computable(dtype: str, where: str) -> None:
    if dtype not in DTYPES or not DTYPES[dtype].computable:
        raise InputError(
            f"{dtype} values cannot be changed or cast",
            where=where,
            expected=", ".join(sorted(d.name for d in DTYPES.values() if d.computable)),
            do="Merge onto the 16-bit or 32-bit weights of this model.",
        )


def _overlap(term: Term, start: int, stop: int) -> bool:
    return term.start < stop and start < term.stop


def _apply(w: Array, block: slice, term: Term, f: Factors, op: Operation) -> None:
    """Let a term change its rows among those of the block."""
    first, last = max(block.start, term.start), min(block.stop, term.stop)
    part = w[first - block.start : last - block.start]
    rows = METHODS[term.method].rows
    assert rows is not None
    new = rows(part, f, term.scale, slice(first - term.start, last - term.start))
    if new.shape != part.shape:
        raise SutureError(f"{term.method} gives {new.shape}", where=f"{op.file}: {op.tensor}", expected=f"{part.shape}")
    if new is not part:
        part[...] = new
