"""# N501 not-finite

## What it finds
Values in the adapter, in what it is added to, in the sum, or in a finished model, that are not numbers (NaN) or
infinite.

## Why it matters
One NaN in a factor makes a whole row or column of the merged weight NaN, and the model prints nothing or rubbish.
Most merges do not look. Such values come from a training run that diverged, or from 16-bit floats that overflowed: the
largest number of float16 is 65,504, so a base in bfloat16 that is merged into float16 may leave its range.

## How it is detected
With `--deep` and before every merge: every value of the adapter, or of the finished model, is read once. With
`check --deep` also the base's rows that the adapter changes (128 of each matrix, evenly spread), before and after the
update and as they would be written, and all sampled rows that a cast to float16 changes.

## How to fix
Take an earlier checkpoint of the run, from before the loss became NaN. If a finished model holds them and its adapter
does not, the sum went beyond what 16-bit floats can hold: merge in float32 or bfloat16 (`--dtype`). If the base holds
them, download or convert it again; `suture check BASE --deep` reads all of it.

## References
- The option `safe_merge` of PEFT's `merge_and_unload` looks for the same
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from suture.measures import Broken
from suture.model_folder import ModelFolder
from suture.rules.base import Case, Rule, from_audit, listed
from suture.values import Audit, Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding for the adapter, one for the base's rows, and one for the sums."""
    bad = {name: s for name, s in (case.stats or {}).items() if s.n_nan + s.n_inf}
    if bad:
        n_nan, n_inf = sum(s.n_nan for s in bad.values()), sum(s.n_inf for s in bad.values())
        yield RULE.finding(
            f"{case.adapter.file}: {listed(bad)}",
            f"{n_nan:,} values are NaN and {n_inf:,} are infinite, in {len(bad)} of {len(case.stats or {})} tensors",
            "finite numbers",
            "Use a checkpoint from before training diverged.",
        )
    broken = case.measures.broken if case.measures else ()
    yield from _of_the_base([b for b in broken if b.n_before])
    if not bad:
        yield from _of_the_sums([b for b in broken if b.n_after])


def _of_the_base(broken: Sequence[Broken]) -> Iterable[Finding]:
    if broken:
        yield RULE.finding(
            f"{broken[0].file}: {listed([b.tensor for b in broken])}",
            f"{sum(b.n_before for b in broken):,} of {sum(b.n_looked_at for b in broken):,} values looked at are NaN or"
            f" infinite before the update, in {len(broken)} {_tensors(broken)}",
            "finite numbers in what the adapter is added to",
            "Download or convert the base again; suture check BASE --deep reads all of it.",
        )


def _of_the_sums(broken: Sequence[Broken]) -> Iterable[Finding]:
    if broken:
        dtypes = " and ".join(sorted({b.dtype for b in broken}))
        yield RULE.finding(
            f"merged weights: {listed([b.tensor for b in broken])}",
            f"{sum(b.n_after for b in broken):,} of {sum(b.n_looked_at for b in broken):,} values looked at are finite"
            f" before and not after they are written as {dtypes}, in {len(broken)} {_tensors(broken)}",
            f"numbers that {dtypes} can hold",
            "Merge with --dtype bf16 or f32, if it is the type's range; else compare alpha and rank with the training"
            " script.",
        )


def _tensors(broken: Sequence[Broken]) -> str:
    return "tensor" if len(broken) == 1 else "tensors"


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
