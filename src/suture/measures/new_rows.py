"""Rows of new tokens: whether anything was ever trained there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from suture.formats import TensorReader
from suture.formats.dtypes import DTYPES, Array
from suture.measures.moves import MEASURED, low_rank
from suture.measures.sampling import Files, is_matrix
from suture.values import Adapter, Arch, Resolved, TensorInfo, Term, Update

MAX_NEW_ROWS = 256
NEAR_MEAN = 0.05  # of the rows' spread: the mean itself is taken from a sample


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows of one tensor of the adapter that the base's vocabulary does not have; the counts are over those looked at.

    A row that is all zero, or near the mean of the old rows, or a repetition of another new row, was never trained.
    """

    tensor: str
    first: int
    n_looked_at: int
    n_zero: int
    n_mean: int
    n_repeated: int


def new_rows(resolved: Resolved, adapter: Adapter, arch: Arch, files: Files, n_tokens: int | None) -> Iterator[NewRows]:
    """The rows that each full matrix has beyond the base's, and all trained tokens.

    Args:
        n_tokens: of the adapter's tokenizer, if it brings one: rows beyond are padding.
    """
    for name, update in resolved.updates.items():
        full, param = update.replacement, arch.params.get(name)
        if param is None or len(param.shape) != 2:
            continue
        methods = {term.method for term in update.terms}
        if methods == {"trainable_tokens"}:
            yield from _trained_tokens(update, adapter, files.tuned)
        elif full is not None and is_matrix(full) and full.shape[0] > param.shape[0]:
            last = min(full.shape[0], n_tokens or full.shape[0])
            if last > param.shape[0] and not methods:
                yield _look(full, param.shape[0], last, files.tuned)
            elif last > param.shape[0] and methods <= MEASURED and _can_read(update.terms, adapter):
                yield _look_below(full, update.terms, param.shape[0], last, files)


def _trained_tokens(update: Update, adapter: Adapter, reader: TensorReader) -> Iterator[NewRows]:
    for term in update.terms:
        rows = adapter.tensors[term.factors["D"].tensor]
        if is_matrix(rows):
            yield _look(rows, 0, rows.shape[0], reader)


def _can_read(terms: tuple[Term, ...], adapter: Adapter) -> bool:
    return all(DTYPES[adapter.tensors[view.tensor].dtype].computable for t in terms for view in t.factors.values())


def _look(tensor: TensorInfo, first: int, last: int, reader: TensorReader) -> NewRows:
    """Look at rows first:last, and compare them with a sample of the rows before them."""
    rows = _read(tensor, _chosen(first, last), reader)
    old = [reader.rows(tensor, tensor.shape[1], s.start, s.stop) for s in _spread(first)]
    zero = ~rows.any(axis=1)
    near = np.zeros(len(rows), bool)
    if old:
        before = np.concatenate(old).astype(np.float64)
        mean = before.mean(axis=0)
        spread = float(np.sqrt(np.square(before - mean).mean()))
        near = ~zero & (np.sqrt(np.square(rows - mean).mean(axis=1)) <= NEAR_MEAN * spread)
    counts = (int(x.sum()) for x in (zero, near, _repeated(rows) & ~zero & ~near))
    return NewRows(tensor.name, first, len(rows), *counts)


def _look_below(tensor: TensorInfo, terms: tuple[Term, ...], first: int, last: int, files: Files) -> NewRows:
    """Look at rows first:last of a matrix with low-rank terms on top.

    Rows at the mean of the old ones, all alike, are what Transformers draws, and the terms may have moved them; so
    what counts as repeated is the sum. Zeros below a term are rows that some tool filled in.
    """
    at = _chosen(first, last)
    rows = _read(tensor, at, files.tuned)
    sums = np.stack([_sum(row, i, terms, files) for row, i in zip(rows, at, strict=True)])
    zero = ~rows.any(axis=1)
    return NewRows(tensor.name, first, len(at), int(zero.sum()), 0, int((_repeated(sums) & ~zero).sum()))


def _sum(row: Array, i: int, terms: tuple[Term, ...], files: Files) -> Array:
    """One row with its low-rank terms. DoRA's stretching is left out: equal sums with equal lengths stay equal."""
    total = row.copy()
    for term in terms:
        if term.start <= i < term.stop:
            total += low_rank(term, i, i + 1, len(row), files)[0]
    return total


def _chosen(first: int, last: int) -> list[int]:
    count = min(last - first, MAX_NEW_ROWS)
    return [first + k * (last - first) // count for k in range(count)]


def _read(tensor: TensorInfo, at: list[int], reader: TensorReader) -> Array:
    rows: Array = np.concatenate([reader.rows(tensor, tensor.shape[1], i, i + 1) for i in at]).astype(np.float64)
    return rows


def _repeated(rows: Array) -> Array:
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    often: Array = np.bincount(inverse.reshape(-1), minlength=len(unique))[inverse.reshape(-1)] > 1
    return often


def _spread(n_rows: int) -> Iterator[slice]:
    """Rows for a mean: up to 2,048, in 64 runs."""
    size = min(n_rows, 32)
    for k in range(min(64, n_rows // size) if size else 0):
        start = k * (n_rows - size) // max(min(64, n_rows // size) - 1, 1)
        yield slice(start, start + size)
