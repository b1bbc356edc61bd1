"""# M312 wrapped-twice

## What it finds
An adapter that was put onto a model that already had one: names with `base_model.model.` twice, or a LoRA inside of
another LoRA.

## Why it matters
Training was to go on from an adapter, and the script called `get_peft_model` on a model that was a PeftModel already.
PEFT warns and makes a fresh adapter around the old one. The new one is trained and saved, under names with the prefix
twice; the old one is not in this file, and in some cases was put out of action as the new one was made. So what the
first training taught may be missing from the file, or have been missing while the second one ran.

## How it is detected
From the names in the file. M301 offers the rewriting that makes the names fit this base; it cannot say whether the
first adapter belongs below this one.

## How to fix
Find out what the base was. To repeat the training: load the first adapter with
`PeftModel.from_pretrained(base, folder, is_trainable=True)` and train that, without `get_peft_model`; or merge the
first adapter, save the result, and train a new adapter on it. If the second training was meant to stand on base and
first adapter, merge the first one, rename the tensors as M301 says, and merge this one onto the result.

## References
- huggingface/peft#1337: names with the prefix twice
- huggingface/lerobot#3459: an adapter put onto an adapter
- huggingface/diffusers#6366: a second adapter by mistake
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from suture.rewriting import PREFIX
from suture.rules.base import Case, Rule, listed
from suture.values import Finding

INSIDE = re.compile(r"\.lora_[A-Z]\w*\..*lora_")  # the factor of an adapter that was itself a target


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the names."""
    twice = [key for key in case.adapter.tensors if key.count(PREFIX) > 1 or INSIDE.search(key)]
    if twice:
        yield RULE.finding(
            f"{case.adapter.file}: {listed(twice, 1)}",
            f"{len(twice)} of {len(case.adapter.tensors)} tensors have the names of an adapter on an adapter:"
            " get_peft_model was called on a PeftModel",
            f"{PREFIX} once in every name",
            "Find out whether the first adapter is part of the base of this one; if so, merge that first. It is not in"
            " this file.",
        )


RULE = Rule("M312", "wrapped-twice", "error", check, modes=("F08",))
