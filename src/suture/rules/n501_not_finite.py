"""# N501 not-finite

## What it finds
Values in the adapter, or in a finished model, that are not numbers (NaN) or infinite.

## Why it matters
One NaN in a factor makes a whole row or column of the merged weight NaN, and the model prints nothing or rubbish.
Most merges do not look. Such values come from a training run that diverged, or from 16-bit floats that overflowed.

## How it is detected
With `--deep` and before every merge: every value of the adapter, or of the finished model, is read once.

## How to fix
Take an earlier checkpoint of the run, from before the loss became NaN. If a finished model holds them and its adapter
does not, the sum went beyond what 16-bit floats can hold: merge in float32 or bfloat16.

## References
- The option `safe_merge` of PEFT's `merge_and_unload` looks for the same
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.model_folder import ModelFolder
from suture.rules.base import Case, Rule, from_audit, listed
from suture.values import Audit, Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the tensors and the counts."""
    bad = {name: s for name, s in (case.stats or {}).items() if s.n_nan + s.n_inf}
    if bad:
        n_nan, n_inf = sum(s.n_nan for s in bad.values()), sum(s.n_inf for s in bad.values())
        yield RULE.finding(
            f"{case.adapter.file}: {listed(bad)}",
            f"{n_nan:,} values are NaN and {n_inf:,} are infinite, in {len(bad)} of {len(case.stats or {})} tensors",
            "finite numbers",
            "Use a checkpoint from before training diverged.",
        )


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """At most one finding, with the tensors and the counts."""
    bad = {name: counts for name, counts in (model.not_finite or {}).items() if sum(counts)}
    if bad:
        n_nan, n_inf = sum(nan for nan, _ in bad.values()), sum(inf for _, inf in bad.values())
        yield RULE.finding(
            f"{model.tensors[min(bad)].file}: {min(bad)}",
            f"{n_nan:,} values are NaN and {n_inf:,} are infinite, in {len(bad)} tensors: {listed(bad)}",
            "finite numbers",
            "Merge an adapter from before training diverged; if it is finite, merge in a type of wider range.",
        )


def live(audit: Audit) -> Iterable[Finding]:
    """The same of a model in memory."""
    return from_audit(audit, RULE, "finite numbers")


RULE = Rule("N501", "not-finite", "error", check, model=check_model, live=live, deep=True, modes=("F40",))
