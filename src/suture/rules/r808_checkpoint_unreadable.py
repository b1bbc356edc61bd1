"""# R808 checkpoint-unreadable

## What it finds
Files of a checkpoint that cannot be read: a weight file that was cut off, JSON that is not whole, adapter weights
without their config, a link to nothing.

## Why it matters
A run that was killed while it saved leaves such a checkpoint, and it is the newest one: the one that a resumption
takes. It either stops with an error that names something else, or goes on without what was in the file.

## How it is detected
The adapter's header must fill its file exactly, and JSON must be whole. Pickled files (`optimizer.pt`) are not
opened, because that can run code; one of size zero is told. A ledger of Suture that cannot be read is a warning: a
trainer resumes without it.

## How to fix
Delete the checkpoint, and resume from the one before.

## References
- huggingface/safetensors, the description of the format: what a header says and what must follow it
- huggingface/transformers#29383: resuming from what a stopped run has left
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.ledger import NAME
from suture.rules.base import Rule
from suture.run_folder import RunFolder
from suture.values import Finding

DO = "Delete the checkpoint, and resume from the one before."
STATE_FILES = ("optimizer", "scheduler", "rng_state", "scaler")


def check_run(run: RunFolder) -> Iterable[Finding]:
    """One finding a file."""
    for name, why in sorted(run.unreadable.items()):
        is_ledger = name == NAME
        do = "Use the version of suture that wrote it, or resume from the checkpoint before." if is_ledger else DO
        severity = "warning" if is_ledger else RULE.severity
        yield RULE.finding(name, why, "a whole file that can be read", do, severity=severity)
    for name in sorted(n for n, size in run.files.items() if n.startswith(STATE_FILES) and size == 0):
        yield RULE.finding(name, "the file is empty", "the state that a resumption reads", DO)


RULE = Rule("R808", "checkpoint-unreadable", "error", run=check_run, modes=("F52",))
