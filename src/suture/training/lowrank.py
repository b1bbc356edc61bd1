"""Factors of a low-rank update of another rank and scale: the same product, or the nearest to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Factors: TypeAlias = tuple[Array, Array]  # A (r, n), B (m, r); the update is s·B·A


@dataclass(frozen=True, slots=True)
class Resized:
    """Factors of the new rank, float32."""

    a: Array
    b: Array
    fresh_b: bool  # added directions have a fresh B and a zero A, as in embeddings
    error: float | None  # ‖Δ − Δ'‖ / ‖Δ‖ of a truncation
    n_fresh: int  # directions that start fresh though the rank fell


def with_rank(old: Factors, fresh: Factors, factor: float) -> Resized:
    """Factors of the rank of `fresh` whose product is factor·B·A, or the nearest to it where the rank falls.

    In each added direction one factor is fresh and the other zero. Which one follows the initial values: B is zero in
    a linear layer, A in an embedding. Were both zero, no gradient would ever reach them.

    Raises:
        ValueError: both fresh factors are zero in the added directions.
    """
    rank, error = len(fresh[0]), None
    if rank < len(old[0]):
        a, b, error = _truncated(old, rank, factor)
    else:
        a, b = old[0], scaled(old[1], factor)
    n_added = rank - len(a)
    if not n_added:
        return Resized(a, b, False, error, 0)
    rows, columns = fresh[0][len(a) :], fresh[1][:, len(a) :]
    fresh_b = not rows.any()
    if fresh_b and not columns.any():
        raise ValueError("the fresh values of both factors are zero")
    columns = columns if fresh_b else np.zeros_like(columns)
    n_fresh = 0 if error is None else n_added
    return Resized(np.concatenate([a, rows]), np.concatenate([b, columns], axis=1), fresh_b, error, n_fresh)


def scaled(b: Array, factor: float) -> Array:
    """factor·B in float32, rounded once; B itself where the factor is 1."""
    return b if factor == 1.0 else (b.astype(np.float64) * factor).astype(np.float32)


def _truncated(old: Factors, rank: int, factor: float) -> tuple[Array, Array, float]:
    """The best approximation of factor·B·A with at most `rank` directions, and ‖Δ − Δ'‖ / ‖Δ‖.

    B = Q R and Aᵀ = P T, so B A = Q (R Tᵀ) Pᵀ: the decomposition is that of an (r, r) matrix. Directions that are
    zero to float32 are left out.
    """
    q, r = np.linalg.qr(old[1].astype(np.float64))
    p, t = np.linalg.qr(old[0].T.astype(np.float64))
    u, sizes, vt = np.linalg.svd(r @ t.T)
    total = float(np.square(sizes).sum())
    error = math.sqrt(float(np.square(sizes[rank:]).sum()) / total) if total else 0.0
    floor = sizes[0] * len(old[0]) * np.finfo(np.float32).eps
    n = min(rank, int((sizes > floor).sum()))
    root = np.sqrt(sizes[:n] * abs(factor))
    a = (p @ vt[:n].T * root).T
    b = q @ u[:, :n] * (root * math.copysign(1.0, factor))
    return np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32), error
