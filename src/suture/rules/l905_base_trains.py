"""# L905 base-trains

## What it finds
Parameters of the base model that train and that no adapter file will hold.

## Why it matters
An adapter's file holds the adapter. If the base's own weights move as well, the model in memory learns something that
is lost when the adapter is saved, and the loaded adapter meets a base that it was not trained with.

## How it is detected
Every parameter that requires a gradient must belong to the adapter: its factors, `modules_to_save`, trained tokens,
or biases that `bias` asks for.

## How to fix
Freeze the base (`get_peft_model` does; something has undone it), or name the modules in `modules_to_save`.

## References
- unslothai/unsloth-zoo#939: a base that was not frozen
- huggingface/peft#3580: the wrong adapter trains
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, from_audit
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """Trainable parameters that are not the adapter's."""
    return from_audit(audit, RULE, "only the adapter trains")


RULE = Rule("L905", "base-trains", "error", live=live, modes=("F09",))
