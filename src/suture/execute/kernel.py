"""The kernel: rows of a tensor → float32 → the terms' formulas → rounded once. One row block of the plan at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from suture.errors import FormatError, InputError, SutureError
from suture.execute import fused
from suture.execute.inputs import Inputs
from suture.execute.pieces import Rows, row_bytes
from suture.factors import FactorReader, cut_rows
from suture.formats import TensorReader
from suture.formats.dtypes import DTYPES, Array, compute_dtype, from_float, to_float
from suture.methods import METHODS
from suture.methods.base import Factors
from suture.planning.layout import blocks
from suture.values import Operation, Origin, Plan, Term

Readers: TypeAlias = Mapping[Origin, TensorReader]


class Kernel:
    """Computes row blocks in buffers that are reused; each worker has its own."""

    def __init__(self, readers: Readers, factors: FactorReader) -> None:
        self._readers = readers
        self._factors = factors
        self._buffers: dict[str, Array] = {}
        self._prepared: dict[tuple[str, int], Factors] = {}

    def run(self, step: Rows) -> Iterator[tuple[int, Array]]:
        """Of each block, the offset in the output file and the stored values, valid until the next block."""
        bound = [self._bind(step, k, t) for k, t in enumerate(step.op.terms) if _overlap(t, step.start, step.stop)]
        block_of = self._fused_block(step, bound) or (lambda block: self._block(step.op, block, bound))
        for block in step.blocks():
            yield step.op.begin + block.start * row_bytes(step.op), block_of(block)

    def _fused_block(self, step: Rows, bound: list[tuple[Term, Factors]]) -> Callable[[slice], Array] | None:
        """What computes a block in one pass: for one LoRA on all of the step's rows, where the kernel was compiled."""
        op, compiled = step.op, fused.load()
        dtypes = (op.source.tensor.dtype, op.dtype)
        if compiled is None or len(bound) != 1 or dtypes not in fused.PAIRS:
            return None
        term, f = bound[0]
        if term.method != "lora" or (term.start, term.stop) != (step.start, step.stop) or not term.rank:
            return None
        packed = compiled.pack(f["A"])

        def block_of(block: slice) -> Array:
            raw = self._raw(op, block)
            same = dtypes[0] == dtypes[1]
            out = raw if same else self._buffer("out", raw.shape, DTYPES[op.dtype].storage)
            rows = slice(block.start - step.start, block.stop - step.start)
            compiled.lora(raw, out, f["B"][rows], packed, term.scale, dtypes)
            return out

        return block_of

    def _block(self, op: Operation, block: slice, bound: list[tuple[Term, Factors]]) -> Array:
        w = self._read(op, block)
        # What overflows or is not a number in the inputs is so in the output; rules and verification speak of it.
        with np.errstate(all="ignore"):
            for term, f in bound:
                if _overlap(term, block.start, block.stop):
                    _apply(w, block, term, f, op)
        out = self._buffer("raw", w.shape, DTYPES[op.dtype].storage)
        return from_float(w, op.dtype, out, self._buffer("scratch", w.shape, np.dtype(np.uint32)))

    def _bind(self, step: Rows, k: int, term: Term) -> tuple[Term, Factors]:
        """The term cut to the step's rows, with its factors. What a method prepares is kept for the tensor."""
        op, dtype = step.op, working_dtype(step.op)
        method = METHODS[term.method]
        if method.prepare is None:
            cut = cut_rows(term, method.axes, step.start, step.stop)
            return cut, self._factors.factors(cut, dtype)
        key = (op.tensor, k)
        if key not in self._prepared:
            self._prepared = {other: f for other, f in self._prepared.items() if other[0] == op.tensor}
            with np.errstate(all="ignore"):
                f = method.prepare(
                    lambda: self._source_blocks(op, term), self._factors.factors(term, dtype), term.scale
                )
            self._prepared[key] = f
        return term, self._prepared[key]

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
        self._readers[op.source.origin].read_into(source, offset, raw)
        return raw

    def _buffer(self, use: str, shape: tuple[int, ...], dtype: np.dtype[Any] | None) -> Array:
        assert dtype is not None
        n_bytes = math.prod(shape) * dtype.itemsize
        held = self._buffers.get(use)
        if held is None or held.nbytes < n_bytes:
            held = self._buffers[use] = np.empty(n_bytes, np.uint8)
        return held[:n_bytes].view(dtype).reshape(shape)


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
