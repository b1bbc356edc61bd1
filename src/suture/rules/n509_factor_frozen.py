"""# N509 factor-frozen

## What it finds
An adapter in which only one of the two factors seems to have been trained: every A is as it was drawn at the start.

## Why it matters
LoRA starts with random values in A and zeros in B. If only B has moved, either A was frozen on purpose (LoRA-FA and
LoRA+ variants do it to save memory), or a mistake froze it, or training was so short or so careful that nothing can be
seen yet. In the last two cases the adapter does less than it could.

## How it is detected
With `check --deep` and before every merge. PEFT draws A evenly from ±1/√n, where n is the number of the layer's inputs.
So the largest value of an untouched A lies just below that bound, and one step of training lifts some value above it.
The rule speaks when in all modules the largest value is between 90 % and 100.2 % of the bound (16-bit rounding may lift
it by 0.2 %), and some B is not zero. After three steps at an ordinary learning rate the maximum stood at 100.4 % to
101.2 %, after sixty at 117 % to 153 %. Other initialisations (gaussian, orthogonal, …) are not judged.

## How to fix
If you did not ask for it, look at `requires_grad` of the `lora_A` parameters, and at the number of steps and the
learning rate.

## References
- arXiv:2308.03303: LoRA-FA, which freezes A
- huggingface/peft#1402: factors that are not trained
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from suture.rules.base import Case, Rule
from suture.stats import Stats
from suture.values import Finding, TensorInfo

A, B = ".lora_A.weight", ".lora_B.weight"
LOW, HIGH = 0.9, 1.002
ENOUGH = 64  # of fewer values the largest may well be far from the bound


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: all A untouched, some B moved."""
    if case.stats is None or case.adapter.config.get("init_lora_weights", True) is not True:
        return
    first = {name: s for name, s in case.stats.items() if name.endswith(A) and s.n_values >= ENOUGH}
    moved = [name for name, s in case.stats.items() if name.endswith(B) and s.n_nonzero]
    if first and moved and all(_is_as_drawn(case.adapter.tensors, name, s) for name, s in first.items()):
        yield RULE.finding(
            case.adapter.file,
            f"all {len(first)} lora_A are within the bound of their random start, while {len(moved)} lora_B have moved",
            "",
            "Nothing, if A was frozen on purpose. Else look at requires_grad of lora_A and at the learning rate.",
        )


def _is_as_drawn(tensors: Mapping[str, TensorInfo], name: str, stats: Stats) -> bool:
    bound = 1 / math.sqrt(max(math.prod(tensors[name].shape[1:]), 1))
    return LOW <= stats.max_abs / bound <= HIGH


RULE = Rule("N509", "factor-frozen", "info", check, deep=True, modes=("F10",))
