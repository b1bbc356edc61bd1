"""# L906 ties-apart

## What it finds
An adapter with `ensure_weight_tying` whose two ends of the vocabulary train apart all the same.

## Why it matters
The option promises that the embedding and the head stay one tensor. If they do not, the model learns two, and whoever
merges or reloads it relies on the promise and keeps one of them.

## How it is detected
The parameters that train for the members of a tied pair are compared by the memory that they use.

## How to fix
Train the ends in full (`modules_to_save`), or load the base in float32: with other types the factors are copied, not
shared. Or drop `ensure_weight_tying`: `suture merge` separates the pair properly.

## References
- huggingface/peft#2864: tied weights and trainable tokens
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, from_audit
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """Ends that should be one and are two."""
    return from_audit(audit, RULE, "one memory for tied parameters, as ensure_weight_tying promises")


RULE = Rule("L906", "ties-apart", "error", live=live, modes=("F02", "F03"))
