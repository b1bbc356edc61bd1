"""# R804 loss-broken

## What it finds
A loss or a gradient norm in the trainer's log that is NaN or infinite, with the step where it began; and losses that
end in nothing but zeros while no gradient flows.

## Why it matters
After one NaN in the weights every later step is NaN too. Transformers hides it from the loss by default
(`logging_nan_inf_filter`): the log shows 0.0, and the run looks as if it were perfect. A loss that stays at zero can
also mean that every label is masked: the trainer found no answer in the texts, and nothing was learned. A gradient
norm that stays at zero says that no gradient reaches what trains.

## How it is detected
From `log_history` in trainer_state.json. If the last line is NaN or infinite, it is an error. One infinite gradient
norm among healthy ones is normal with float16, which skips such a step; broken lines in the middle are a warning. Zeros
are a warning if the last three lines or more have them and their gradient norm is zero or not logged. A single zero may
be a small loss that was rounded. Runs that log rewards or a KL divergence (GRPO, DPO) are left out: there a loss of
zero, or a negative one, is healthy.

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
import re
from collections.abc import Iterable
from typing import Any

from suture.formats.kind import TRAINER_STATE
from suture.rules.base import Rule
from suture.rules.r802_step_disagrees import entries
from suture.run_folder import RunFolder
from suture.values import Finding

FIELDS = ("loss", "grad_norm", "eval_loss")
ZERO = {  # field → what to do where it stays at zero
    "loss": "Look at the labels: if the chat template does not mark the answers, all of them are -100.",
    "grad_norm": "Look at what trains: suture.check(model) audits it in memory.",
}
SEVERAL = 3  # lines
_PREFERENCE = re.compile(r"(^|[/_])(rewards?|kl|completions?)($|[/_])")  # fields of trainers whose loss may be zero
DO = "Take the last checkpoint before this step; then lower the learning rate, or use bfloat16 instead of float16."


def check_run(run: RunFolder) -> Iterable[Finding]:
    """One finding for each number that broke, and at most one for zeros."""
    for field in FIELDS:
        lines = [(e.get("step"), e[field]) for e in entries(run) if field in e]
        broken = [(step, value) for step, value in lines if _is_broken(value)]
        if not broken:
            continue
        at_end = _is_broken(lines[-1][1])
        first = broken[0][0]
        found = f"{field} is {_shown(broken[0][1])} at step {first}, and broken in {len(broken)} of {len(lines)} lines"
        found += ", up to the last" if at_end else ""
        severity = RULE.severity if at_end else "warning"
        yield RULE.finding(f"{TRAINER_STATE}: log_history", found, "finite numbers", DO, severity=severity)
    yield from _zeros(run)


def _zeros(run: RunFolder) -> Iterable[Finding]:
    """Losses, or else gradient norms, that are zero up to the last line."""
    if any(_PREFERENCE.search(name) for entry in entries(run) for name in entry):
        return
    for field, why in ZERO.items():
        lines = [e for e in entries(run) if field in e]
        is_zero = [e[field] == 0 and e.get("grad_norm", 0) == 0 for e in lines]
        end = lines[len(lines) - is_zero[::-1].index(False) :] if False in is_zero else lines
        if len(end) >= SEVERAL:
            found = f"{field} is 0 in the last {len(end)} of {len(lines)} lines, from step {end[0].get('step')} on"
            found += "" if field == "grad_norm" else ", and no gradient flows"
            yield RULE.finding(
                f"{TRAINER_STATE}: log_history", found, "numbers that are not zero", why, severity="warning"
            )
            return


def _is_broken(value: Any) -> bool:
    if isinstance(value, str):  # some versions write numbers that JSON has no word for as text
        return value.lower() in ("nan", "inf", "-inf", "infinity", "-infinity")
    return isinstance(value, float) and not math.isfinite(value)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


RULE = Rule("R804", "loss-broken", "error", run=check_run, modes=("F40",))
