"""# N508 rounding-loss

## What it finds
How much of the adapter gets lost when the merged weights are rounded to the type in which they are stored.

## Why it matters
A weight in bfloat16 has eight significant bits. A change that is smaller than half a step, 0.2 to 0.4 % of the weight,
disappears: the weight keeps its old value. An adapter is made of such small changes. Unmerged it is computed on its own
and keeps them all; merged, a part of them is gone. What remains of many small changes is right on average, so half of
it may be lost and the model still be good; a short or careful training, though, can vanish nearly as a whole.

## How it is detected
With `check --deep`: for some rows of each matrix (128, evenly spread) the merged weights are computed, rounded once to
the type of the output, and compared with what they were before rounding. The loss is ‖rounding‖ / ‖update‖. The rule
gives an info when the typical module (the median) loses more than 10 %, and a warning above 50 %. On a 135M model in
bfloat16 it was 94 % after three steps of training at a learning rate of 2e-4, 72 % after twenty and 37 % after sixty;
and after sixty steps at 3e-3 it was 3 %. So nothing is wrong with the file when this rule speaks: an adapter that was
trained for a short time or at a small rate really loses most of its update in a merge to bfloat16, with any tool.
DoRA on layers that are stored transposed (Conv1D of GPT-2, embeddings) is not measured.

## How to fix
Merge with `--dtype f32`: nothing is lost, and the files are twice as large. Or serve base and adapter unmerged. If the
merged model is to be quantised afterwards, quantise the float32 one: the quantiser rounds anyway, and once is enough.

## References
- huggingface/peft#1035, huggingface/peft#1388: merged models that differ from unmerged ones
- unslothai/unsloth#3091: precision that is lost on merging
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from suture.rules.base import Case, Rule
from suture.values import Finding

SOME, MOST = 0.1, 0.5


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: what the typical module loses, and the worst ones."""
    moves = {m.tensor: m for m in (case.measures.moves if case.measures else ()) if m.update}
    losses = {name: move.loss for name, move in moves.items()}
    if not losses or (typical := median(losses.values())) <= SOME:
        return
    worst = sorted(losses, key=lambda name: -losses[name])[:3]
    dtypes = " and ".join(sorted({moves[name].dtype for name in worst}))
    yield RULE.finding(
        f"{case.checkpoint.folder.name}: {len(losses)} changed weights",
        f"rounding to {dtypes} takes {typical:.0%} of a typical update; most of all from "
        + ", ".join(f"{name} ({losses[name]:.0%})" for name in worst),
        f"less than {SOME:.0%}",
        "Merge with --dtype f32 to keep all of it, or compare the merged model with the unmerged one.",
        severity="warning" if typical > MOST else "info",
    )


RULE = Rule("N508", "rounding-loss", "warning", check, deep=True, modes=("F39",))
