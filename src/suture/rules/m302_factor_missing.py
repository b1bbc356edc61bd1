"""# M302 factor-missing

## What it finds
One half of a pair: a `lora_A` without its `lora_B`, or the other way round.

## Why it matters
The change of a weight is the product of the two. With one of them missing it cannot be computed; PEFT fills the gap
with an untrained factor, warns, and goes on with a weaker adapter.

## How it is detected
From the names in the header of the file, module by module.

## How to fix
Save the adapter again, gathered onto one process: half-written pairs come from saving while the parameters are still
split among processes (ZeRO-3, FSDP), or from a filter on names.

## References
- huggingface/peft#453, huggingface/peft#2450: incomplete adapters saved under ZeRO-3
- huggingface/peft#2118: missing keys on loading
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, from_problems
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """Factors that no method can take on their own."""
    return from_problems(case, RULE.code, RULE.name)


RULE = Rule("M302", "factor-missing", "error", check, modes=("F11", "F21", "F22"))
