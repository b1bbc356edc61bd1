"""How far apart two sets of logits are, in float64, a few rows at a time: vocabularies are large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from suture.verification.reading import Floats

Logits = npt.NDArray[np.float32]

BLOCK_VALUES = 1 << 22  # 32 MiB of float64


@dataclass(frozen=True, slots=True)
class Divergence:
    """Sums over positions. KL is KL(p ‖ q) in nats, where p and q are the softmax of the two logits."""

    n_positions: int = 0
    sum_kl: float = 0.0
    max_kl: float = 0.0
    max_abs: float = 0.0
    n_same_top: int = 0

    def __add__(self, other: Divergence) -> Divergence:
        return Divergence(
            self.n_positions + other.n_positions,
            self.sum_kl + other.sum_kl,
            float(np.maximum(self.max_kl, other.max_kl)),  # NaN stays NaN
            float(np.maximum(self.max_abs, other.max_abs)),
            self.n_same_top + other.n_same_top,
        )

    @property
    def mean_kl(self) -> float:
        """Mean over positions; NaN where there are none."""
        return self.sum_kl / self.n_positions if self.n_positions else float("nan")

    @property
    def top1(self) -> float:
        """Share of positions whose most likely class is the same."""
        return self.n_same_top / self.n_positions if self.n_positions else float("nan")


def divergence(p: Logits, q: Logits) -> Divergence:
    """Compare logits (positions, classes) of the same inputs."""
    total = Divergence()
    with np.errstate(all="ignore"):
        for rows in _blocks(*p.shape):
            total += _of_block(p[rows].astype(np.float64), q[rows].astype(np.float64))
    return total


def _blocks(n_rows: int, n_classes: int) -> Iterator[slice]:
    size = max(1, BLOCK_VALUES // max(n_classes, 1))
    return (slice(at, at + size) for at in range(0, n_rows, size))


def _of_block(p: Floats, q: Floats) -> Divergence:
    apart = np.where(p == q, 0.0, np.abs(p - q))  # equal infinities are not apart
    same_top = int(np.count_nonzero(p.argmax(axis=1) == q.argmax(axis=1)))
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    share = np.exp(log_p)
    kl = np.where(share > 0, share * (log_p - log_q), share).sum(axis=1)
    kl = np.maximum(kl, 0.0)  # rounding may give −1e-17
    return Divergence(len(p), float(kl.sum()), float(kl.max()), float(apart.max()), same_top)


def _log_softmax(x: Floats) -> Floats:
    x = x - x.max(axis=1, keepdims=True)
    result: Floats = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return result
