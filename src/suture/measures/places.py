"""Whether trained rows of a vocabulary still stand where they began: near the base's rows of the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from suture.formats import TensorReader
from suture.formats.dtypes import Array
from suture.measures.sampling import Files, is_matrix, stripes
from suture.values import Adapter, Arch, Resolved, TensorInfo, Update

MAX_TOKENS = 32
NEIGHBOURS = 8  # on each side of a token: where rows are that were shifted
DISTINCT = 0.5  # of the usual distance from the mean: rows nearer to it are alike, and their order says nothing
EQUAL = 1e-5  # cosines that differ by less: equal rows of the base
MUCH_NEARER = 0.5  # times the distance


@dataclass(frozen=True, slots=True)
class Places:
    """Sampled rows of one tensor of the adapter, beside the base's rows of the same numbers."""

    tensor: str
    is_whole: bool  # a whole matrix; else a list of tokens
    n_looked_at: int  # rows that the base has; of a matrix, those that can be told from others
    n_astray: int  # of a matrix: nearest to another sampled row of the base; of a list: much nearer to another row
    cosine: float | None  # of a matrix: the median of the cosine with the base's row, both seen from the mean
    length: float  # the median of ‖row‖ / ‖the base's row‖


def places(
    resolved: Resolved, adapter: Adapter, arch: Arch, stored: Mapping[str, TensorInfo], files: Files
) -> Iterator[Places]:
    """All whole matrices of the vocabulary that were trained, and all lists of trained tokens.

    Args:
        stored: parameter → the tensor of the base that is all of it.
    """
    frozen = {tensor.name for tensor in resolved.frozen.values()}
    ends = _ends(arch)
    for name, update in resolved.updates.items():
        base, full = stored.get(name), update.replacement
        if base is None or name not in ends or not is_matrix(base):
            continue
        if full is not None and full.name not in frozen and is_matrix(full) and full.shape[1] == base.shape[1]:
            yield from _whole(full, base, files)
        yield from _tokens(update, adapter, base, files)


def _ends(arch: Arch) -> frozenset[str]:
    """The weights of embedding and head, and what is tied to either."""
    ends = {f"{module}.weight" for module in (arch.input_embedding, arch.output_embedding) if module is not None}
    tied = [set(tie.members) for tie in arch.ties]
    return frozenset(ends.union(*(members for members in tied if members & ends)))


def _whole(full: TensorInfo, base: TensorInfo, files: Files) -> Iterator[Places]:
    """Rows that are sampled of both; each side is seen from its own mean, since training moves all rows of a head."""
    at = list(stripes(min(full.shape[0], base.shape[0])))
    tuned, old = _rows(full, at, files.tuned), _rows(base, at, files.base)
    good = _is_judged(tuned, old)
    if good.any():
        cosines = _directions(tuned) @ _directions(old).T
        own = cosines.diagonal()
        astray = good & ~((own > 0) & (own >= cosines.max(axis=1) - EQUAL))
        counts = int(good.sum()), int(astray.sum())
        yield Places(full.name, True, *counts, float(np.median(own[good])), _length(tuned[good], old[good]))


def _tokens(update: Update, adapter: Adapter, base: TensorInfo, files: Files) -> Iterator[Places]:
    """Up to 32 listed tokens, beside the base's rows of all of them, their neighbours', and sampled ones."""
    start = update.replacement or base  # of a resized vocabulary the adapter holds the rows that training began with
    reader = files.base if update.replacement is None else files.tuned
    for term in update.terms:
        if term.method != "trainable_tokens" or not is_matrix(start):
            continue
        tensor = adapter.tensors[term.factors["D"].tensor]
        ids = [term.start + row for row in term.rows_changed]
        if not is_matrix(tensor) or tensor.shape[1] != start.shape[1]:
            continue
        count = min(len(ids), MAX_TOKENS)
        listed = [k * len(ids) // count for k in range(count)]
        around = _around([ids[k] for k in listed], start.shape[0])
        own = np.array([around.index(ids[k]) for k in listed], np.int64)
        at = [*(slice(i, i + 1) for i in around), *stripes(start.shape[0])]
        if listed:
            tuned = _rows(tensor, [slice(k, k + 1) for k in listed], files.tuned)
            yield from _listed(tensor.name, tuned, _rows(start, at, reader), own)


def _listed(tensor: str, tuned: Array, base: Array, own: Array) -> Iterator[Places]:
    """Distances, not directions: rows that began alike are as far from each other's place as from their own."""
    good = np.isfinite(tuned).all(axis=1) & np.isfinite(base[own]).all(axis=1)
    if good.any():
        distances = np.stack([_norms(base - row) for row in tuned])
        least = np.where(np.isfinite(distances), distances, np.inf).min(axis=1)
        astray = good & (least < MUCH_NEARER * distances[np.arange(len(tuned)), own])
        yield Places(tensor, False, int(good.sum()), int(astray.sum()), None, _length(tuned[good], base[own][good]))


def _around(ids: Sequence[int], n_rows: int) -> list[int]:
    near = {i + k for i in ids for k in range(-NEIGHBOURS, NEIGHBOURS + 1)}
    return sorted(i for i in near if 0 <= i < n_rows)


def _rows(tensor: TensorInfo, at: Sequence[slice], reader: TensorReader) -> Array:
    found: Array = np.concatenate([reader.rows(tensor, tensor.shape[1], s.start, s.stop) for s in at])
    return found.astype(np.float32, copy=False)


def _is_judged(tuned: Array, base: Array) -> Array:
    """Rows of finite numbers, whose row in the base is about as far from the mean as rows usually are."""
    finite = np.isfinite(base).all(axis=1)
    far = _norms(base - _mean(base))
    usual = float(np.median(far[finite])) if finite.any() else 0.0
    judged: Array = np.isfinite(tuned).all(axis=1) & finite & (far >= DISTINCT * usual) & (usual > 0)
    return judged


def _directions(rows: Array) -> Array:
    """Rows of length one, seen from their mean; zero for those that lie on it."""
    seen = rows - _mean(rows)
    norms = _norms(seen)[:, None].astype(np.float32)
    useful = np.isfinite(norms) & (norms > 0)
    directions: Array = np.where(useful, seen / np.where(useful, norms, 1), np.float32(0))
    return directions


def _mean(rows: Array) -> Array:
    finite = np.isfinite(rows).all(axis=1)
    mean: Array = rows[finite].mean(axis=0) if finite.any() else np.zeros(rows.shape[1], np.float32)
    return mean


def _length(tuned: Array, base: Array) -> float:
    return float(np.median(_norms(tuned) / np.maximum(_norms(base), np.finfo(np.float32).tiny)))


def _norms(rows: Array) -> Array:
    norms: Array = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))
    return norms
