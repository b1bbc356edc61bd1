"""# X602 weights-left-behind

## What it finds
Weight files in the adapter's folder that a merge would not use.

## Why it matters
Some trainers save what they trained outside the adapter beside it: a projector, a value head, new embeddings. The
merge knows nothing of them, so a model that needs them would be incomplete without an error.

## How it is detected
From the names of the files in the adapter's folder. Files of the adapter itself, of other adapters and of the trainer
(optimizer, scheduler, random state) do not count.

## How to fix
Find out what the file holds. If the model works without it, or if you add it by hand afterwards, pass `--ignore X602`.

## References
- arcee-ai/mergekit#328: new embeddings in a file of their own
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, listed
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the files."""
    files = case.beside.unmerged
    if files:
        yield RULE.finding(
            f"{case.adapter.folder}: {listed(files)}",
            f"{len(files)} weight files beside the adapter would not be merged",
            f"only {case.adapter.file}",
            "Find out what they hold. If the merged model does not need them, pass --ignore X602.",
        )


RULE = Rule("X602", "weights-left-behind", "error", check, may_ignore=True, modes=("F11", "F35"))
