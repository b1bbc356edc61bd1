"""Terms of a module's parameter carried over to the checkpoint tensors it is made of. Pure algebra on row ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from suture.methods import METHODS
from suture.values import Param, Part, Term, Update, View


class NotExpressible(Exception):
    """The terms cannot be carried over; the message says why."""


@dataclass(frozen=True, slots=True)
class Carried:
    """An update as seen from one checkpoint tensor: its terms, its columns, the parameter's row it begins at."""

    terms: tuple[Term, ...]
    cols: int
    first_row: int


def carry(update: Update, part: Part, param: Param) -> Carried:
    """The update as changes to rows of `part.tensor`.

    The parameter is a matrix of `update.cols` columns; the part picks a range of its rows and columns, transposes it
    if asked, and puts it at an offset of the tensor.

    Raises:
        NotExpressible: a method does not work on that cut.
    """
    n_rows = math.prod(update.shape) // update.cols
    (start, stop), (left, right) = _ranges(part, update.shape, n_rows, update.cols, fused=param.kind == "Experts")
    whole = (left, right) == (0, update.cols) and not part.transpose and part.rows is None
    if update.replacement is not None and not whole:
        raise NotExpressible("a replaced parameter that is only part of a tensor")
    terms = [_rows(t, start, stop) for t in update.terms if t.start < stop and t.stop > start]
    if (left, right) != (0, update.cols):
        terms = [_cols(t, left, right) for t in terms]
    if part.transpose:
        terms = [_transposed(t, stop - start, right - left) for t in terms]
    offset = 0
    if part.rows is not None:
        per_row = math.prod(update.shape[1:]) // update.cols if len(update.shape) > 1 else 1
        offset = part.rows[0] * per_row
    moved = tuple(replace(t, start=t.start + offset, stop=t.stop + offset) for t in terms)
    return Carried(moved, stop - start if part.transpose else right - left, start)


def _ranges(
    part: Part, shape: tuple[int, ...], n_rows: int, n_cols: int, *, fused: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the parameter's matrix that the part's index takes."""
    rows, cols = (0, n_rows), (0, n_cols)
    row_axes = len(shape) - 1 if fused else 1  # axes that the matrix's rows are made of
    size = n_rows
    for axis, at in enumerate(part.index):
        if axis < row_axes:
            size //= shape[axis]
            first, last = (at, at + 1) if isinstance(at, int) else at
            if (first, last) == (0, shape[axis]):
                continue
            if rows[1] - rows[0] != size * shape[axis]:
                raise NotExpressible("a range inside every expert")
            rows = (rows[0] + first * size, rows[0] + last * size)
        elif axis == len(shape) - 1 and not isinstance(at, int):
            cols = at
        else:
            raise NotExpressible(f"an index on axis {axis} of {list(shape)}")
    return rows, cols


def _rows(term: Term, start: int, stop: int) -> Term:
    """The part of a term that falls into rows start:stop, counted from there."""
    first, last = max(term.start, start), min(term.stop, stop)
    cut = (first - term.start, last - term.start)
    factors = _along(term, "rows", cut)
    if term.rows_changed and cut != (0, term.stop - term.start):
        raise NotExpressible("single rows of a tensor that is only partly here")
    return replace(term, factors=factors, start=first - start, stop=last - start)


def _cols(term: Term, left: int, right: int) -> Term:
    if METHODS[term.method].prepare is not None or term.method == "dora":
        raise NotExpressible(f"{term.method} on some of the columns")
    return replace(term, factors=_along(term, "cols", (left, right)))


def _along(term: Term, which: str, cut: tuple[int, int]) -> dict[str, View]:
    axes = METHODS[term.method].axes
    return {
        name: view.cut(axes[name].index(which), *cut) if which in axes[name] else view
        for name, view in term.factors.items()
    }


def _transposed(term: Term, n_rows: int, n_cols: int) -> Term:
    """The same change, of the transpose of the matrix."""
    twin = METHODS[term.method].transposed
    if twin is None or (term.start, term.stop) != (0, n_rows):
        raise NotExpressible(f"{term.method} on a transposed tensor")
    method, names = twin
    factors = {names[k]: v.T if len(v.size) == 2 else v for k, v in term.factors.items()}
    return replace(term, method=method, factors=factors, start=0, stop=n_cols)
