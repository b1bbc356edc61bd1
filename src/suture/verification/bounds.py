"""How far a float32 evaluation of a method may be from the exact result: bounds that hold for any order of summation.

Notation: u = 2⁻²⁴, the largest relative error of one float32 operation; γ(n) = n·u / (1 − n·u) bounds that of n
operations in a row (Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1). e is the bound on the error of
the values that come in.

**Sums of products** (LoRA, and every method made of +, · and matrix products only):

    |fl(W') − W'| ≤ γ(k) · W'(|W|, |f|, |s|) + what the formula makes of e

that is, the formula itself on absolute values, times the number k of roundings that one result passes. LoRA has
k = r + 2: r for the inner product of length r, one for the scale, one for the sum; so

    |fl(W') − W'| ≤ γ(r + 2) · (|W| + |s| · |B| |A|)

**DoRA**, W' = m · V / ‖V‖. Let M = |W| + |s| |B| |A| and e_V = γ(r + 2) · M, the bound of LoRA for V, and let each norm
be over n values. Three things move the computed norm:

    the error of V            relative ‖e_V‖ / ‖V‖ = γ(r + 2) · ‖M‖ / ‖V‖     by the triangle inequality
    n squares, n − 1 sums     relative γ(n) / 2     all terms are positive; the square root halves it
    the square root           relative u

so η = γ(r + 2) · ‖M‖ / ‖V‖ + γ(n) / 2 + u. The quotient and the product round once each:

    |fl(W') − W'| ≤ |m| / ‖V‖ · (e_V + |V| · (η + 2u)) · (1 + 2u) / (1 − η)        (no bound where η ≥ 1/2)

With float32 output γ(n) / 2 is by far the largest part: 1.2e-4 relative for n = 4096.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from suture.methods import METHODS
from suture.methods.base import Factors
from suture.values import Term
from suture.verification.reading import Floats


@dataclass(frozen=True, slots=True)
class Step:
    """One term applied to rows: the factors, their absolute values, and the rows before and after it."""

    term: Term
    factors: Factors
    sizes: Factors
    before: Floats
    after: Floats
    rows: slice  # counted from the term's first row


@dataclass(frozen=True, slots=True)
class Bound:
    """Element by element: the largest error of float32, and the size of the numbers that the update is summed from."""

    error: Floats
    update: Floats


def _many(rank: int) -> int:
    """More roundings than a sum of products of up to four factors passes."""
    return 2 * rank + 8


ROUNDINGS: Mapping[str, Callable[[int], int]] = {
    "lora": lambda rank: rank + 2,
    "lora_bias": lambda rank: 2,
    "trainable_tokens": lambda rank: 0,
}


def bound(step: Step, error: Floats, unit: float) -> Bound:
    """The bound after one more term, when `error` is that of `step.before` and `unit` the u of the evaluation."""
    if step.term.method in ("dora", "dora_columns"):
        return _dora(step, error, unit)
    return _sum_of_products(step, error, unit)


def gamma(n: int, unit: float) -> float:
    """γ(n)."""
    return n * unit / (1.0 - n * unit)


def _sum_of_products(step: Step, error: Floats, unit: float) -> Bound:
    count = ROUNDINGS.get(step.term.method, _many)(step.term.rank)
    size = np.abs(step.before)
    total = _evaluate(step.term.method, step, size.copy())
    carried = _evaluate(step.term.method, step, size + error) - total if error.any() else np.zeros_like(error)
    return Bound(gamma(count, unit) * (total + carried) + carried, np.maximum(total - size, 0.0))


def _dora(step: Step, error: Floats, unit: float) -> Bound:
    """DoRA comes first among a weight's terms, so W is exact: `error` is 0."""
    assert not error.any()
    m, rank = np.abs(step.factors["m"]), step.term.rank
    size, v = _evaluate("lora", step, np.abs(step.before)), np.abs(step.after)  # M and |m| · |V| / ‖V‖
    if step.term.method == "dora":
        norm, n = _row_norms(_v(step)), size.shape[1]
        gain, ratio = m[step.rows][:, None] / norm, _row_norms(size) / norm
    else:
        norm, n = step.factors["n"], step.term.stop - step.term.start
        gain, ratio = m / norm, step.sizes["n"] / norm
    eta = gamma(rank + 2, unit) * ratio + gamma(n, unit) / 2 + unit
    growth = np.where(eta < 0.5, (1 + 2 * unit) / (1 - eta), np.inf)
    return Bound((gain * gamma(rank + 2, unit) * size + v * (eta + 2 * unit)) * growth, v + gain * size)


def _v(step: Step) -> Floats:
    rows = METHODS["lora"].rows
    assert rows is not None
    return rows(step.before.copy(), step.factors, step.term.scale, step.rows)


def _evaluate(method: str, step: Step, size: Floats) -> Floats:
    """A method's formula on absolute values."""
    rows = METHODS[method].rows
    assert rows is not None
    return rows(size, step.sizes, abs(step.term.scale), step.rows)


def _row_norms(x: Floats) -> Floats:
    norms: Floats = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
    return norms
