"""# N501 not-finite

## What it finds
Values in the adapter that are not numbers (NaN) or infinite.

## Why it matters
One NaN in a factor makes a whole row or column of the merged weight NaN, and the model prints nothing or rubbish. Most
merges do not look. Such values come from a training run that diverged, or from 16-bit floats that overflowed.

## How it is detected
With `check --deep` and before every merge: every value of the adapter is read once.

## How to fix
Take an earlier checkpoint of the run, from before the loss became NaN.

## References
- The option `safe_merge` of PEFT's `merge_and_unload` looks for the same
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, listed
from suture.values import Finding


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


RULE = Rule("N501", "not-finite", "error", check, deep=True, modes=("F40",))
