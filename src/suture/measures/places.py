"""Whether trained rows of a vocabulary still stand where they began: near the base's rows of the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from suture.formats import TensorReader
from suture.formats.dtypes import Array
from suture.measures.sampling import Files, is_matrix, stripes
from suture.values import Adapter, Arch, Resolved, TensorInfo, Update

MAX_TOKENS = 64
NEIGHBOURS = 8  # on each side of a token: where rows are that were shifted
DISTINCT = 0.5  # of the usual distance from the mean: rows nearer to it are alike, and their order says nothing
EQUAL = 1e-5
MUCH_NEARER, NEAR = 0.5, 0.7


@dataclass(frozen=True, slots=True)
class Places:
    """Sampled rows of one tensor of the adapter, beside the base's rows of the same numbers."""

    tensor: str
    is_whole: bool  # a whole matrix; else a list of tokens
    n_looked_at: int  # rows that the base has, and that can be told from others
    n_astray: int  # of a matrix: nearest to another sampled row of the base; of a list: much nearer to another row
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
    """Rows that are sampled of both; each side is taken from its own mean, since training moves all rows of a head."""
    at = list(stripes(min(full.shape[0], base.shape[0])))
    tuned, old = _rows(full, at, files.tuned), _rows(base, at, files.base)
    good = _is_judged(tuned, old, old)
    if good.any():
        own, other = _compared(_centred(tuned, tuned), _centred(old, old), np.arange(len(old)))
        astray = good & ~((own > 0) & (own >= other - EQUAL))
        yield Places(full.name, True, int(good.sum()), int(astray.sum()), _length(tuned[good], old[good]))


def _tokens(update: Update, adapter: Adapter, base: TensorInfo, files: Files) -> Iterator[Places]:
    """Up to 64 listed tokens, beside the base's rows of all of them, their neighbours', and sampled ones."""
    start = update.replacement or base  # of a resized vocabulary the adapter holds the rows that training began with
    reader = files.base if update.replacement is None else files.tuned
    for term in update.terms:
        if term.method != "trainable_tokens" or not is_matrix(start):
            continue
        rows = adapter.tensors[term.factors["D"].tensor]
        ids = [term.start + row for row in term.rows_changed]
        listed = sorted(
            {k * len(ids) // MAX_TOKENS for k in range(MAX_TOKENS)} if len(ids) > MAX_TOKENS else range(len(ids))
        )
        if not is_matrix(rows) or not ids or rows.shape[1] != start.shape[1]:
            continue
        ids = [ids[k] for k in listed]
        around = _around(ids, start.shape[0])
        usual = _rows(start, list(stripes(start.shape[0])), reader)
        near = _rows(start, [slice(i, i + 1) for i in around], reader)
        own_place = np.array([around.index(i) for i in ids])
        tuned = _rows(rows, [slice(k, k + 1) for k in listed], files.tuned)
        good = _is_judged(tuned, near[own_place], usual)
        if good.any():
            candidates = np.concatenate([near, usual])
            own, other = _compared(_centred(tuned, usual), _centred(candidates, usual), own_place)
            astray = good & (other >= NEAR) & (own < MUCH_NEARER * other)
            length = _length(tuned[good], near[own_place][good])
            yield Places(rows.name, False, int(good.sum()), int(astray.sum()), length)


def _around(ids: Sequence[int], n_rows: int) -> list[int]:
    near = {i + k for i in ids for k in range(-NEIGHBOURS, NEIGHBOURS + 1)}
    return sorted(i for i in near if 0 <= i < n_rows)


def _rows(tensor: TensorInfo, at: Sequence[slice], reader: TensorReader) -> Array:
    found: Array = np.concatenate([reader.rows(tensor, tensor.shape[1], s.start, s.stop) for s in at])
    return found.astype(np.float32, copy=False)


def _is_judged(tuned: Array, base: Array, usual: Array) -> Array:
    """Rows of finite numbers, whose row in the base is as far from the mean as rows usually are."""
    finite = np.isfinite(usual).all(axis=1)
    mean = usual[finite].mean(axis=0) if finite.any() else np.zeros(usual.shape[1], np.float32)
    far = float(np.median(_norms(usual[finite] - mean))) if finite.any() else 0.0
    distinct = _norms(base - mean) >= DISTINCT * far
    judged: Array = np.isfinite(tuned).all(axis=1) & np.isfinite(base).all(axis=1) & distinct & (far > 0)
    return judged


def _centred(rows: Array, sample: Array) -> Array:
    """Directions of rows, seen from the sample's mean; zero for rows that lie on it."""
    seen = rows - sample[np.isfinite(sample).all(axis=1)].mean(axis=0)
    norms = _norms(seen)[:, None].astype(np.float32)
    useful = np.isfinite(norms) & (norms > 0)
    directions: Array = np.where(useful, seen / np.where(useful, norms, 1), np.float32(0))
    return directions


def _compared(rows: Array, base: Array, own_place: Array) -> tuple[Array, Array]:
    """Of each row, the cosine with its own row of the base, and the largest one with any other row."""
    cosines = rows @ base.T
    own = cosines[np.arange(len(rows)), own_place]
    same = (base[own_place] @ base.T) > 1 - EQUAL  # the sample may hold a token's own row again, or an equal one
    return own, np.where(same, -1, cosines).max(axis=1)


def _length(tuned: Array, base: Array) -> float:
    return float(np.median(_norms(tuned) / np.maximum(_norms(base), np.finfo(np.float32).tiny)))


def _norms(rows: Array) -> Array:
    norms: Array = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))
    return norms
