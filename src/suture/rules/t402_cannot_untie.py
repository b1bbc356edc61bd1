"""# T402 cannot-untie

## What it finds
Tied parameters that the adapter changes in different ways, in an architecture that cannot keep them apart.

## Why it matters
In some architectures the tie flag does more than share a tensor: T5 also scales its output by it. With the flag off the
model computes something else, so a merged model with two tensors would be wrong, and one with a single tensor would be
wrong too.

## How it is detected
The model class is built once more with all tie flags off; if the parameters are still shared, if others appear, or if
the class's code reads the flag in its forward pass, the pair is not separable. The finding names the reason.

## How to fix
Serve the adapter unmerged. Or train without the embeddings and the head, or with both changed alike
(`ensure_weight_tying`).

## References
- huggingface/peft#2864: adapters on tied weights
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, from_problems
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """Groups that would have to come apart and cannot."""
    return from_problems(case, RULE.code, RULE.name)


RULE = Rule("T402", "cannot-untie", "error", check, modes=("F01",))
