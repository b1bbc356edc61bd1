"""# M306 adapter-empty

## What it finds
An adapter file without tensors, with tensors of size zero, or with nothing in it that was trained.

## Why it matters
Such files come from saving while the parameters are split among processes: every process saves what it has, and that
is nothing. The file looks like an adapter and has its name, and loaders only warn. Merged, the model is the base.

## How it is detected
From the header: no tensors, an axis of length 0, or only copies of the base's matrices.

## How to fix
Save the adapter again after the parameters were gathered (DeepSpeed: `stage3_gather_16bit_weights_on_model_save`), or
recover it from the last complete checkpoint of the run.

## References
- huggingface/trl#4416: an empty adapter file under ZeRO-3
- huggingface/peft#453, huggingface/peft#460, huggingface/peft#2450: tensors of size zero
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, listed
from suture.values import Finding

AGAIN = "Save the adapter again after gathering its parameters onto one process."


def check(case: Case) -> Iterable[Finding]:
    """No tensors, tensors without values, or nothing but copies of the base."""
    tensors, where = case.adapter.tensors, case.adapter.file
    hollow = [t.name for t in tensors.values() if t.n_values == 0]
    if not tensors:
        yield RULE.finding(where, "the file holds no tensors", "the factors of at least one module", AGAIN)
    elif hollow:
        found = f"{len(hollow)} of {len(tensors)} tensors have no values: {listed(hollow)}"
        yield RULE.finding(where, found, "no axis of length 0", AGAIN)
    elif not case.resolved.updates and not case.resolved.problems:
        found = f"all {len(tensors)} tensors are copies of the base model: nothing in the file was trained"
        yield RULE.finding(where, found, "the factors of at least one module", AGAIN)


RULE = Rule("M306", "adapter-empty", "error", check, modes=("F21",))
