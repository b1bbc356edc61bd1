"""# N502 no-effect

## What it finds
An adapter that changes nothing: in every pair one factor is zero, and it replaces no matrix and no token.

## Why it matters
LoRA starts with B = 0, so that the model is the base's at first. If B is still zero, training never reached the
adapter: it was saved before the first step, its parameters got no gradient (gradient checkpointing without
`enable_input_require_grads`, a fused kernel, another parameter group), or the learning rate was zero. The merge would
be correct and the model that of the base.

## How it is detected
With `check --deep` and before every merge: the values of every factor are read. With DoRA the magnitudes move together
with B; they are taken to be untrained when B is zero.

## How to fix
Train again, and look at the gradients of the factors after the first step. If you want a merge of an untrained adapter
all the same, for a test, pass `--ignore N502`.

## References
- huggingface/peft#1402: factors that stay zero
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, from_audit
from suture.values import Audit, Finding, Term


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: every update is without effect."""
    updates = case.resolved.updates.values()
    if case.stats is None or not updates:
        return
    if all(update.replacement is None and all(is_idle(case, term) for term in update.terms) for update in updates):
        yield RULE.finding(
            case.adapter.file,
            f"the adapter does nothing: all of its {len(updates)} updates have a factor that is zero",
            "factors that training has moved away from zero",
            "Train again: no gradient reached the adapter. --ignore N502 merges it all the same.",
        )


def is_idle(case: Case, term: Term) -> bool:
    """True when a term is known to change nothing: one of its factors, or its scale, is zero."""
    if term.method == "trainable_tokens":
        return False
    if term.scale == 0:
        return True
    return any(_is_zero(case, view.tensor) for name, view in term.factors.items() if name != "m")


def _is_zero(case: Case, tensor: str) -> bool:
    stats = (case.stats or {}).get(tensor)
    return stats is not None and not (stats.n_nonzero or stats.n_nan or stats.n_inf)


def live(audit: Audit) -> Iterable[Finding]:
    """The same of a model in memory."""
    return from_audit(audit, RULE, "factors that training has moved away from zero")


RULE = Rule("N502", "no-effect", "error", check, live=live, may_ignore=True, deep=True, modes=("F10",))
