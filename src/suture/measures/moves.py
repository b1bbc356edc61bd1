"""How far each matrix of the output moves, what rounding takes from that, and whether it stays finite."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from suture.factors import cut_rows
from suture.formats.dtypes import DTYPES, Array
from suture.measures import sampling
from suture.measures.rounding import Rounded, at_random, to_nearest
from suture.measures.sampling import F64, Files, stripes
from suture.methods import METHODS
from suture.values import Adapter, Kept, Operation, Term

MEASURED = {"lora", "dora"}  # `prepare` of the others would need every row
DORA = {"dora", "dora_columns"}


@dataclass(frozen=True, slots=True)
class Move:
    """One matrix of the output, on its sampled rows. Norms are over those rows together."""

    tensor: str
    dtype: str  # that it is written in
    base: float  # ‖W‖
    update: float  # ‖ΔW‖
    magnitude: float | None  # DoRA: the median of |m / ‖W‖ − 1| over the rows; None for other methods
    nearest: Kept  # what rounding leaves of the update
    stochastic: Kept

    @property
    def ratio(self) -> float:
        """‖ΔW‖ / ‖W‖; 0 where W is all zero."""
        return self.update / self.base if self.base else 0.0

    @property
    def is_finite(self) -> bool:
        """True where all of it is a number."""
        return all(map(math.isfinite, (self.base, self.update, self.nearest.lost, self.stochastic.lost)))


@dataclass(frozen=True, slots=True)
class Turn:
    """One matrix that DoRA changes, on its sampled rows.

    The sum W + s·BA is stretched to given lengths, so that an update of any size leaves a matrix of the usual size.
    """

    tensor: str
    ratio: float  # ‖s·BA‖ / ‖W‖, before the stretching; 0 where W is all zero


@dataclass(frozen=True, slots=True)
class Broken:
    """A matrix of which sampled values are NaN or infinite."""

    tensor: str
    dtype: str  # that it is written in
    file: str  # that its rows come from
    n_looked_at: int
    n_before: int  # not finite where they come from
    n_after: int  # finite there, and not finite as they are written


@dataclass(frozen=True, slots=True)
class Moved:
    """Sums over the sampled rows of one matrix."""

    base: float = 0.0  # ‖W‖²
    update: float = 0.0  # ‖ΔW‖²
    nearest: Rounded = field(default_factory=Rounded)
    stochastic: Rounded = field(default_factory=Rounded)
    n_rows: int = 0


def move(op: Operation, files: Files) -> tuple[Move, Broken]:
    """Measure a matrix that `is_measured`."""
    sums, shares, counts = moved(op, files, sampling.STRIPES)
    magnitude = float(np.median(np.concatenate(shares))) if shares else None
    kept = sums.nearest.kept(sums.update), sums.stochastic.kept(sums.update)
    return Move(op.tensor, op.dtype, sums.base**0.5, sums.update**0.5, magnitude, *kept), _broken(op, counts)


def moved(op: Operation, files: Files, n_stripes: int) -> tuple[Moved, list[Array], Array]:
    """The sums over that many stripes; of DoRA each row's |m / ‖W‖ − 1|; and what is not finite."""
    sums, counts, shares = Moved(), np.zeros(3, np.int64), list[Array]()
    for rows in stripes(op.rows, n_stripes):
        w = files.source(op, rows)
        v = changed(op, w, rows, files, shares)
        near = to_nearest(v, op)
        sums = Moved(
            sums.base + float(np.square(w).sum()),
            sums.update + float(np.square(v - w).sum()),
            sums.nearest + Rounded.of(w, v, near),
            sums.stochastic + Rounded.of(w, v, at_random(v, op, rows)),
            sums.n_rows + len(w),
        )
        counts += _counts(w, near)
    return sums, shares, counts


def changed(op: Operation, w: Array, rows: slice, files: Files, shares: list[Array] | None = None) -> Array:
    """Rows w of a matrix that `is_measured`, after its terms; DoRA puts each row's |m / ‖W‖ − 1| into `shares`."""
    v = w.copy()
    for term in op.terms:
        low, high = max(term.start, rows.start), min(term.stop, rows.stop)
        if low < high:
            here = slice(low - rows.start, high - rows.start)
            found = _apply(v, w, here, cut_rows(term, METHODS[term.method].axes, low, high), files)
            if shares is not None:
                shares += found
    return v


def turn(op: Operation, files: Files) -> Turn:
    """Measure the low-rank part of DoRA on a matrix that `is_turned`."""
    base = update = 0.0
    for rows in stripes(op.rows):
        delta = np.zeros((rows.stop - rows.start, op.cols))
        for term in op.terms:
            low, high = max(term.start, rows.start), min(term.stop, rows.stop)
            if term.method in DORA and low < high:
                delta[low - rows.start : high - rows.start] += low_rank(term, low, high, op.cols, files)
        base += float(np.square(files.source(op, rows)).sum())
        update += float(np.square(delta).sum())
    return Turn(op.tensor, (update / base) ** 0.5 if base else 0.0)


def low_rank(term: Term, start: int, stop: int, cols: int, files: Files) -> Array:
    """Rows start:stop of s·BA, of a term that has them."""
    factors = files.factors.factors(cut_rows(term, METHODS[term.method].axes, start, stop), F64)
    formula = METHODS["lora"].rows
    assert formula is not None
    return formula(np.zeros((stop - start, cols)), factors, term.scale, slice(0, stop - start))


def scan(op: Operation, files: Files) -> Broken:
    """Count what is not finite before any term, and as it is written if there is none."""
    counts = np.zeros(3, np.int64)
    for rows in stripes(op.rows):
        w = files.source(op, rows)
        counts += _counts(w, w if op.terms else to_nearest(w, op))
    return _broken(op, counts)


def is_measured(op: Operation, adapter: Adapter) -> bool:
    """A matrix with low-rank terms only, in dtypes that can be computed with."""
    methods = {term.method for term in op.terms}
    return bool(methods) and methods <= MEASURED and op.cols > 1 and _is_computable(op, adapter)


def is_turned(op: Operation, adapter: Adapter) -> bool:
    """A matrix that DoRA changes."""
    return any(term.method in DORA for term in op.terms) and op.cols > 1 and _is_computable(op, adapter)


def is_scanned(op: Operation) -> bool:
    """What the adapter changes, and what a cast could push out of float16's range."""
    can_change = bool(op.terms) or (op.dtype == "F16" and not op.is_copy)
    return can_change and op.cols > 0 and all(DTYPES[d].computable for d in (op.dtype, op.source.tensor.dtype))


def _is_computable(op: Operation, adapter: Adapter) -> bool:
    factors = [adapter.tensors[view.tensor].dtype for term in op.terms for view in term.factors.values()]
    return all(DTYPES[dtype].computable for dtype in (op.dtype, op.source.tensor.dtype, *factors))


def _apply(v: Array, w: Array, here: slice, term: Term, files: Files) -> list[Array]:
    """Change rows of v by a term; for DoRA also each row's |m / ‖W‖ − 1|."""
    formula = METHODS[term.method].rows
    assert formula is not None
    factors = files.factors.factors(term, F64)
    v[here] = formula(v[here].copy(), factors, term.scale, slice(0, here.stop - here.start))
    if term.method != "dora":
        return []
    norms = np.sqrt(np.square(w[here]).sum(axis=1))
    return [np.abs(factors["m"][norms > 0] / norms[norms > 0] - 1.0)]


def _counts(before: Array, after: Array) -> Array:
    finite = np.isfinite(before)
    return np.array([before.size, (~finite).sum(), (finite & ~np.isfinite(after)).sum()])


def _broken(op: Operation, counts: Array) -> Broken:
    return Broken(op.tensor, op.dtype, op.source.tensor.file, *(int(n) for n in counts))
