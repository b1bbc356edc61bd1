"""# R803 nothing-moved

## What it finds
Tensors of a checkpoint that are equal, byte for byte, to those of the checkpoint before, though the learning rate was
above zero in between.

## Why it matters
The trainer counted steps and learned nothing. That happens when an adapter was loaded without `is_trainable=True`,
when the optimiser holds other parameters than the model, or when an adapter that is not the active one trains. The
loss is flat, which is easily taken for a plateau.

## How it is detected
With `--deep`: the adapter's tensors are compared with those of the checkpoint before in the same folder. Copies of
the base's matrices, which PEFT saves beside trained ones, do not count, nor do tensors whose learning rate is zero in
the ledger. All tensors equal is an error; some is a warning, because an expert that no token reached does not move.

## How to fix
Load the adapter with `is_trainable=True`, count the trainable parameters before the first step, and look that the
optimiser was made after the adapter. `suture train` and `suture.ProofCallback` check all of this before they begin.

## References
- huggingface/peft#184, huggingface/peft#282: an adapter that is frozen after loading
- huggingface/trl#6700: an optimiser without parameters
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, listed
from suture.rules.r802_step_disagrees import entries
from suture.run_folder import RunFolder
from suture.values import Finding

COPIES = (".base_layer.", ".original_module.")
LARGEST = 1e300  # of a learning rate; integers in JSON may be too large for a float
ADDED = (".lora_", ".token_adapter.", ".modules_to_save.")


def check_run(run: RunFolder) -> Iterable[Finding]:
    """At most one finding: everything that trains is still, or some of it."""
    if run.still is None or run.adapter is None or run.previous is None:
        return
    trains = _trains(run)
    still = [name for name in run.still if name in trains]
    rate = _rate(run)
    if not still or rate == 0:
        return
    since = f"since checkpoint-{run.previous}"
    rated = f"the learning rate was up to {rate:g}" if rate else "the log does not tell the learning rate"
    if len(still) == len(trains):
        found = f"all {len(still)} tensors that should train are unchanged {since}; {rated}"
        do = "Load the adapter with is_trainable=True, and make the optimiser after it."
        yield RULE.finding(run.weights, found, "other values after every step", do)
    else:
        found = f"{len(still)} of {len(trains)} tensors are unchanged {since}; {rated}: {listed(still)}"
        do = "Look at their gradients; an expert that no token reached is the harmless case."
        where = f"{run.weights}: {still[0]}"
        yield RULE.finding(where, found, "other values after every step", do, severity="warning")


def _trains(run: RunFolder) -> set[str]:
    """Tensors that should change: by the ledger where there is one, else by their names and the config."""
    if run.adapter is None:
        return set()
    if run.ledger is not None:
        return {r.name for r in run.ledger.tensors if r.lr != 0 and r.name in run.adapter.tensors}
    saved = run.adapter.config.get("modules_to_save")
    modules = [f".{name}." for name in saved] if isinstance(saved, list) else []
    wanted = (*ADDED, *modules)
    names = (n for n in run.adapter.tensors if not any(copy in n for copy in COPIES))
    return {n for n in names if any(part in n for part in wanted)}


def _rate(run: RunFolder) -> float | None:
    """The largest learning rate that was logged since the checkpoint before; None where none was."""
    after = run.previous or 0
    logged = [(e.get("step"), e.get("learning_rate")) for e in entries(run)]
    rates = [lr for step, lr in logged if isinstance(step, int) and isinstance(lr, int | float) and step > after]
    return max((float(lr) for lr in rates if abs(lr) < LARGEST), default=None)


RULE = Rule("R803", "nothing-moved", "error", run=check_run, deep=True, modes=("F09", "F10"))
