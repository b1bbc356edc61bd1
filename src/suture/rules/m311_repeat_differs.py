"""# M311 repeat-differs

## What it finds
A parameter that the file holds twice, under two names, with different values.

## Why it matters
With a resized vocabulary PEFT saves a trained embedding under its plain name and once more under
`modules_to_save.weight`. The two are the same matrix. If they differ, one of them is stale, and a merge would have to
guess which.

## How it is detected
With `check --deep` and before every merge, by comparing the bytes of the two.

## How to fix
Save the adapter again from the model that was trained. If it cannot be loaded any more, remove the tensor that is out
of date from the file.

## References
- huggingface/peft#1300: embeddings saved with an adapter
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """One finding for each tensor that should repeat another one and does not."""
    for tensor in case.uneven:
        yield RULE.finding(
            f"{case.adapter.file}: {tensor}",
            f"its values are not those of {case.resolved.copies[tensor]}, which is the same parameter",
            "the same values twice",
            "Save the adapter again from the trained model.",
        )


RULE = Rule("M311", "repeat-differs", "error", check, deep=True, modes=("F12",))
