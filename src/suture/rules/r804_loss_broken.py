"""# R804 loss-broken

## What it finds
A loss or a gradient norm in the trainer's log that is NaN, infinite, or exactly zero, with the step where it began.

## Why it matters
After one NaN in the weights every later step is NaN too. Transformers hides it from the loss by default
(`logging_nan_inf_filter`): the log shows 0.0, and the run looks as if it were perfect. A loss of zero also means that
every label is masked: the trainer found no answer in the texts, and nothing was learned. A gradient norm of zero says
that no gradient reaches what trains.

## How it is detected
From `log_history` in trainer_state.json. If the last lines are broken, it is an error. One infinite gradient norm
among healthy ones is normal with float16, which skips such a step; broken lines in the middle are a warning.

## How to fix
Go back to the last checkpoint before the step that is named. Then lower the learning rate, clip gradients, or use
bfloat16 instead of float16. If the loss is zero from the first step, look at the labels: with a chat template that
does not mark the answers all of them are -100.

## References
- huggingface/peft#1402: gradients that stay zero
- Transformers' documentation of `TrainingArguments`: `logging_nan_inf_filter`
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from suture.rules.base import Rule
from suture.rules.r802_step_disagrees import entries
from suture.run_folder import STATE, RunFolder
from suture.values import Finding

FIELDS = ("loss", "grad_norm", "eval_loss")
DO = "Take the last checkpoint before this step; then lower the learning rate, or use bfloat16 instead of float16."


def check_run(run: RunFolder) -> Iterable[Finding]:
    """One finding for each number that broke."""
    for field in FIELDS:
        lines = [(e.get("step"), e[field]) for e in entries(run) if field in e]
        broken = [(step, value) for step, value in lines if _is_broken(value)]
        if not broken:
            continue
        at_end = broken[-1] == lines[-1] or (lines[-1] in broken)
        first = broken[0][0]
        found = f"{field} is {_shown(broken[0][1])} at step {first}, and broken in {len(broken)} of {len(lines)} lines"
        found += ", up to the last" if at_end else ""
        severity = RULE.severity if at_end else "warning"
        yield RULE.finding(f"{STATE}: log_history", found, "finite numbers above zero", DO, severity=severity)


def _is_broken(value: Any) -> bool:
    if isinstance(value, str):  # some versions write numbers that JSON has no word for as text
        return value.lower() in ("nan", "inf", "-inf", "infinity", "-infinity")
    return isinstance(value, int | float) and (not math.isfinite(value) or value == 0)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


RULE = Rule("R804", "loss-broken", "error", run=check_run, modes=("F40",))
