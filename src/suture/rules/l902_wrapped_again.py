"""# L902 wrapped-again

## What it finds
A model with a LoRA on top of a LoRA: `get_peft_model` was called on a model that had an adapter already, or a second
adapter trains beside the first.

## Why it matters
It happens when training goes on with an adapter. The second call adds fresh factors; the first adapter is frozen,
left out of the file, or saved under names that fit no base (`base_model.model.base_model.model.…`). The loss starts
again from the base's, and the first training is lost.

## How it is detected
By looking for a PeftModel inside of the PeftModel, and for trainable parameters that belong to an adapter which is
not active.

## How to fix
To go on with an adapter, load it and train it: `PeftModel.from_pretrained(base, adapter, is_trainable=True)`, without
`get_peft_model`. `suture train --continue` does this and proves it. To stack trainings, merge the first adapter into
the base, save that, and train on it.

## References
- huggingface/peft#1337: keys with a doubled prefix
- huggingface/diffusers#6366: a second adapter on top of the first
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, from_audit
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """One adapter inside of another, or beside it."""
    return from_audit(audit, RULE, "one adapter, wrapped once")


RULE = Rule("L902", "wrapped-again", "error", live=live, modes=("F08", "F09"))
