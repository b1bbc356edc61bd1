"""# R801 state-missing

## What it finds
A checkpoint in the middle of a run without all that a resumption reads: the optimiser, the schedule of the learning
rate, the state of the random numbers, or the trainer's own state.

## Why it matters
Transformers loads what it finds and says nothing of the rest. Without the optimiser's moments and the schedule the
run goes on with a cold optimiser and a warm-up from the start: the loss jumps, and the result is another one than
that of a run that was never stopped. The adapter in the checkpoint is not touched by this and can be merged.

## How it is detected
From the names of the files, where trainer_state.json says that steps were left: `optimizer.pt` (or `.bin`, or the
folders of DeepSpeed and FSDP), `scheduler.pt`, `rng_state*.pth`. What the other checkpoints of the run have, such as
`scaler.pt`, is expected here too. A run that has no optimiser in any of its checkpoints was saved with
`save_only_model=True`, on purpose: that is an info, once a run. So is a checkpoint that stands alone and has nothing of
the state at all.

## How to fix
Resume from the checkpoint before, or take this one as the start of a new run (`suture train --continue`), which says
what it does not restore. Save checkpoints without `save_only_model` if you want to resume.

## References
- huggingface/transformers#24252, huggingface/transformers#24274: checkpoints that are not resumed whole
- huggingface/peft#574: resuming an adapter
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.kind import TRAINER_STATE
from suture.rules.base import Rule, listed
from suture.run_folder import RunFolder
from suture.values import Finding

SHARDED = ("global_step", "optimizer_", "pytorch_model_fsdp")
PARTS = {"optimizer": "optimizer.pt", "scheduler": "scheduler.pt", "rng_state": "rng_state.pth"}
OFTEN = ("scaler.pt", "training_args.bin")


def check_run(run: RunFolder) -> Iterable[Finding]:
    """At most one finding, with the files; for checkpoints without state on purpose, one in the first of the run."""
    if run.number is None:
        return
    if TRAINER_STATE not in run.files:
        found = "there is no trainer_state.json: step, epoch and data order are not known"
        yield RULE.finding(TRAINER_STATE, found, "the trainer's state", "Resume from the checkpoint before.")
        return
    step, last = run.state.get("global_step"), run.state.get("max_steps")
    if isinstance(step, int) and isinstance(last, int) and 0 < last <= step:
        return  # the run is over: nothing will be resumed
    if _is_by_choice(run):
        if run.previous is None:
            found = "no optimizer was saved, as save_only_model does: training cannot be resumed from here"
            do = "Nothing, if the run is not to go on. Train without save_only_model to be able to resume."
            yield RULE.finding("optimizer.pt", found, "all of the trainer's state", do, severity="info")
        return
    missing = [file for part, file in PARTS.items() if not _has(run, part)]
    missing += [file for file in OFTEN if file in run.elsewhere and file not in run.files]
    are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
    if missing:
        yield RULE.finding(
            missing[0],
            f"{listed(missing)} {are} not there, though {step} of {last} steps are done: "
            f"a resumed run begins {them} anew",
            "all of the trainer's state",
            "Resume from the checkpoint before; the adapter itself is not touched by this.",
        )


def _is_by_choice(run: RunFolder) -> bool:
    """Whether no checkpoint of the run has an optimiser; of one that stands alone, whether it has no state at all."""
    if not run.elsewhere:
        return not any(_has(run, part) for part in PARTS)
    return not _has(run, "optimizer") and not any(name.startswith(("optimizer", *SHARDED)) for name in run.elsewhere)


def _has(run: RunFolder, part: str) -> bool:
    sharded = part != "rng_state" and any(name.startswith(SHARDED) for name in run.folders)
    return sharded or any(name.startswith(part) for name in run.files)


RULE = Rule("R801", "state-missing", "warning", run=check_run, modes=("F52",))
