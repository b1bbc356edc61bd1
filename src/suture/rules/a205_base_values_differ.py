"""# A205 base-values-differ

## What it finds
A matrix of the base model that the adapter brought along, as it was before training, and that is not in this base.

## Why it matters
An adapter on the embeddings, or on a resized vocabulary, saves the matrix that training began with. Training did not
touch it, so its rows are rows of the right base, bit for bit. When they are not, the adapter was trained on other
weights of the same shape, and the merge would give a model that nobody trained.

## How it is detected
With `check --deep` and before every merge: the rows of each such matrix are compared with the base's rows of the same
numbers. Fewer than 99 % equal rows are an error.

## How to fix
Merge onto the base that the adapter was trained on: look at `base_model_name_or_path` and at the revision. If you know
that the difference is meant, pass `--ignore A205`.

## References
- huggingface/peft#1567: pinning the revision of the base
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding

ENOUGH = 0.99  # trainers repair a few rows of unused tokens before they start


def check(case: Case) -> Iterable[Finding]:
    """One finding for each saved copy that is of another base."""
    params = {tensor.name: param for param, tensor in case.resolved.frozen.items()}
    named = case.adapter.config.get("base_model_name_or_path") or "which the config does not name"
    for tensor, share in sorted((case.frozen or {}).items()):
        if share < ENOUGH:
            yield RULE.finding(
                f"{case.adapter.file}: {tensor}",
                f"only {share:.1%} of its rows are those of the base's {params.get(tensor, 'matrix')}",
                f"at least {ENOUGH:.0%} equal rows: training did not change this copy",
                f"Merge onto the base that the adapter was trained on ({named}).",
            )


RULE = Rule("A205", "base-values-differ", "error", check, may_ignore=True, deep=True, modes=("F06", "F07"))
