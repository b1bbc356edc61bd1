"""Sizes of a model as sums of products of config fields: "num_attention_heads*head_dim", "2*inner", "hidden/heads"."""

from __future__ import annotations

import math
from collections.abc import Mapping


def evaluate(formula: str, sizes: Mapping[str, int]) -> int | None:
    """The value of a formula, or None where a division leaves a rest.

    Args:
        formula: terms joined by "+"; a term is factors joined by "*", divided by at most one factor after "/"; a
            factor is a number or a key of `sizes`.
    """
    total = 0
    for term in formula.split("+"):
        top, _, below = term.partition("/")
        divisor = _factor(below, sizes) if below else 1
        product = math.prod(_factor(f, sizes) for f in top.split("*"))
        if not divisor or product % divisor:
            return None
        total += product // divisor
    return total


def holds(condition: str, sizes: Mapping[str, int]) -> bool:
    """Whether "a%b" leaves no rest, where a is a formula and b a factor."""
    formula, _, below = condition.rpartition("%")
    value, divisor = evaluate(formula, sizes), _factor(below, sizes)
    return value is not None and divisor > 0 and value % divisor == 0


def _factor(text: str, sizes: Mapping[str, int]) -> int:
    return int(text) if text.isdigit() else sizes[text]
