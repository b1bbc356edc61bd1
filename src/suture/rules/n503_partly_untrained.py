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
    modules: dict[str, bool] = {}
    for update in case.resolved.updates.values():
        for term in update.terms:
            modules[term.module] = modules.get(term.module, True) and is_idle(case, term)
    idle = [module for module, does_nothing in modules.items() if does_nothing]
    if idle and len(idle) < len(modules):
        yield RULE.finding(
            case.adapter.file,
            f"{len(idle)} of {len(modules)} modules are untrained, one of their factors is zero: {listed(idle)}",
            "factors that training has moved away from zero",
            "If these modules should have learned, look at their gradients in training.",
        )


RULE = Rule("N503", "partly-untrained", "warning", check, deep=True, modes=("F10", "F25"))
