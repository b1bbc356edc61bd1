"""# M308 conversion-unsupported

## What it finds
An update of a parameter that the base's files hold in a form onto which it cannot be carried.

## Why it matters
In memory a model is not always what is on disk: Transformers joins projections, stacks experts and transposes matrices
while it loads. Most such conversions are followed backwards, tensor by tensor. For some there is no way back for a
given update: a length over whole rows (DoRA) of a tensor that holds only some of the columns, or a conversion that this
version does not know. Leaving the update out would be silent.

## How it is detected
From the names, shapes and conversions of the model class, before anything is written.

## How to fix
Load the base with Transformers, save it in a current format, and merge onto that; or serve the adapter unmerged.

## References
- huggingface/peft#3212: adapters and checkpoints that are converted on loading
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, from_problems
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """Updates that no tensor on disk can take."""
    return from_problems(case, RULE.code, RULE.name)


RULE = Rule("M308", "conversion-unsupported", "error", check, modes=("F13", "F38"))
