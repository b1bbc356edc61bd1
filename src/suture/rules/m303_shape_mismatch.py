"""# M303 shape-mismatch

## What it finds
Tensors of the adapter that lead to a module of the base model and do not have its sizes.

## Why it matters
The names of a model family are the same for every size, so an adapter for the 8B model finds all its modules in the 3B
model. Its factors do not fit there.

## How it is detected
From the shapes in both headers: for a linear layer with weight (out, in), A is (r, in) and B is (out, r). A weight
that is stored transposed, a convolution, an embedding and fused experts have shapes of their own. A bias needs a layer
that has one. A square weight of an unknown class is never guessed at.

## How to fix
Merge onto the base model that the adapter was trained on, of the same size and revision.

## References
- huggingface/peft#2489, huggingface/peft#2725: biases of adapters
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, from_problems
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """Tensors that do not fit the module they lead to."""
    return from_problems(case, RULE.code, RULE.name)


RULE = Rule("M303", "shape-mismatch", "error", check, modes=("F06", "F16", "F33", "F45"))
