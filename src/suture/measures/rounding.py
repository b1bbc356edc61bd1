"""What rounding to 16 bits leaves of an update, to nearest and at random, on sampled rows.

With Δ = W' − W the update and Δ' = (W' as it is written) − W what is applied of it:

    share   ⟨Δ', Δ⟩ / ⟨Δ, Δ⟩          1: all of Δ is in the file, whatever else is
    cosine  ⟨Δ', Δ⟩ / (‖Δ'‖ ‖Δ‖)      1: nothing else is
    lost    ‖Δ' − Δ‖

To nearest, the share falls with the size of Δ, for changes below half a step disappear. At random it is 1 on average,
and what else is in the file is noise, of which every change below a step brings its part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from suture import noise
from suture.formats.dtypes import SIXTEEN, Array, from_float, from_float_at_random, to_float
from suture.values import Kept, Operation

DIGITS = 6  # that do not depend on how a machine sums


@dataclass(frozen=True, slots=True)
class Rounded:
    """Sums over sampled values of what one way of rounding does."""

    lost: float = 0.0  # ‖Δ' − Δ‖²
    inner: float = 0.0  # ⟨Δ', Δ⟩
    applied: float = 0.0  # ‖Δ'‖²

    @classmethod
    def of(cls, w: Array, v: Array, written: Array) -> Rounded:
        """Rows before the update, after it, and as they are written, in float64."""
        applied = written - w
        squares = float(np.square(written - v).sum()), float(np.square(applied).sum())
        return cls(squares[0], float((applied * (v - w)).sum()), squares[1])

    def __add__(self, other: Rounded) -> Rounded:
        return Rounded(self.lost + other.lost, self.inner + other.inner, self.applied + other.applied)

    def times(self, factor: float) -> Rounded:
        """The same for as many times the values."""
        return Rounded(self.lost * factor, self.inner * factor, self.applied * factor)

    def kept(self, update: float) -> Kept:
        """The share and the cosine, of an update of that ‖Δ‖²; 0 where nothing is applied."""
        both = (self.applied * update) ** 0.5
        share, cosine = self.inner / update if update else 1.0, self.inner / both if both else 0.0
        lost = (self.lost / update) ** 0.5 if update else 0.0
        return Kept(*(round(x, DIGITS) for x in (share, cosine, lost)))


def to_nearest(v: Array, op: Operation) -> Array:
    """Rows as they are written, in float64."""
    return to_float(from_float(v, op.dtype), op.dtype).astype(np.float64)


def at_random(v: Array, op: Operation, rows: slice) -> Array:
    """The same, by the bits that a merge would take, of its seed or 0; 32 bits are rounded to nearest."""
    if op.dtype not in SIXTEEN:
        return to_nearest(v, op)
    key = noise.key(op.seed or 0, op.tensor)
    bits = noise.bits(key, rows.start * op.cols, v.size).reshape(v.shape)
    return to_float(from_float_at_random(v.astype(np.float32), op.dtype, bits), op.dtype).astype(np.float64)


def spread(operations: Sequence[Operation], most: int) -> list[Operation]:
    """At most so many of them, evenly spread."""
    if len(operations) <= most:
        return list(operations)
    return [operations[k * len(operations) // most] for k in range(most)]
