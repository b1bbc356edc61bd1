"""# N503 partly-untrained

## What it finds
Modules whose pair has a factor that is zero, while other modules of the same adapter were trained.

## Why it matters
It can be right: an expert that never got a token learns nothing. It can also mean that a part of the model was
bypassed in training, because the code of the model uses the weight directly, or because a layer was frozen. Then the
adapter is weaker than it should be.

## How it is detected
With `check --deep` and before every merge: the values of every factor are read.

## How to fix
Look at the names. If all modules of one kind are untrained, look at the gradients of these modules after one step of
training.

## References
- huggingface/peft#2274: weights that are used directly
- huggingface/peft#1402: factors that stay zero
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, listed
from suture.rules.n502_no_effect import is_idle
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the modules that do nothing."""
    if case.stats is None:
        return
    updates = case.resolved.updates.values()
    copies = {copy.name for copy in case.resolved.frozen.values()}  # of a resized matrix: LoRA is added to them
    low_rank = [u for u in updates if u.terms and (u.replacement is None or u.replacement.name in copies)]
    idle = [u.param for u in low_rank if all(is_idle(case, term) for term in u.terms)]
    if idle and (len(idle) < len(updates) or any(u.replacement for u in updates)):  # else N502 says it of all
        yield RULE.finding(
            case.adapter.file,
            f"{len(idle)} of {len(updates)} updates do nothing, one of their factors is zero: {listed(idle)}",
            "factors that training has moved away from zero",
            "If these modules should have learned, look at their gradients in training.",
        )


RULE = Rule("N503", "partly-untrained", "warning", check, deep=True, modes=("F10", "F25"))
