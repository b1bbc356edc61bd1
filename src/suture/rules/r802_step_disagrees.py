"""# R802 step-disagrees

## What it finds
A checkpoint that tells its step in several ways: the folder's number, `global_step` in trainer_state.json, the last
line of the log, and the ledger.

## Why it matters
A resumed run takes the step from trainer_state.json, the newest checkpoint is chosen by the folder's number, and the
learning rate follows from both. If they differ, files of two saves were mixed or a folder was renamed: the run
repeats or leaves out data, and the schedule does not fit.

## How it is detected
The numbers are compared. The log may end before the step, as not every step is logged, but not after it.

## How to fix
Resume from a checkpoint in which all agree. If a folder was only renamed, give it its number back.

## References
- huggingface/transformers#29383: what is restored when a run goes on
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from suture.formats.kind import TRAINER_STATE
from suture.formats.ledger import NAME
from suture.rules.base import Rule
from suture.run_folder import RunFolder
from suture.values import Finding

DO = "Resume from a checkpoint in which all agree."


def check_run(run: RunFolder) -> Iterable[Finding]:
    """One finding for each number that disagrees."""
    step = run.state.get("global_step")
    if not isinstance(step, int):
        return
    if run.number is not None and step != run.number:
        found = f"{step}, and the folder is {run.folder.name}"
        yield RULE.finding(f"{TRAINER_STATE}: global_step", found, f"{run.number}", DO)
    if run.ledger is not None and run.number is not None and run.ledger.step != step:
        found = f"step {run.ledger.step}, and trainer_state.json says {step}"
        yield RULE.finding(f"{NAME}: step", found, f"{step}", DO)
    last = run.state.get("max_steps")
    if isinstance(last, int) and 0 < last < step:
        found = f"{last}, and {step} steps were made"
        yield RULE.finding(f"{TRAINER_STATE}: max_steps", found, f"at least {step}", DO, severity="warning")
    logged = max((n for entry in entries(run) if isinstance(n := entry.get("step"), int)), default=0)
    if logged > step:
        found = f"the log goes on to step {logged}, and the checkpoint is of step {step}"
        yield RULE.finding(f"{TRAINER_STATE}: log_history", found, f"no step after {step}", DO)


def entries(run: RunFolder) -> list[dict[str, Any]]:
    """Lines of the trainer's log, in order."""
    history = run.state.get("log_history")
    return [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []


RULE = Rule("R802", "step-disagrees", "error", run=check_run, modes=("F52",))
