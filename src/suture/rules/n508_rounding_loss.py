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
Merge with `--dtype f32`: nothing is lost, and the files are twice as large. Or serve base and adapter unmerged. Or
merge with `--rounding stochastic`: the whole update arrives on average, with noise. On a 135M model whose trained
update was 0.1 to 0.2 % of the weights that was ten times closer to the adapter in KL than rounding to nearest, and at
0.8 % a little farther. If the merged model is to be quantised afterwards, quantise the float32 one: the quantiser
rounds anyway, and once is enough.

## References
- huggingface/peft#1035, huggingface/peft#1388: merged models that differ from unmerged ones
- unslothai/unsloth#3091: precision that is lost on merging
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median

from suture.measures import Move
from suture.rules.base import Case, Rule
from suture.values import Finding

SOME, MOST = 0.1, 0.5


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: what the typical module loses, and the worst ones."""
    moves = {m.tensor: m for m in (case.measures.moves if case.measures else ()) if m.update}
    at_random = case.options.rounding == "stochastic"
    losses = {name: (m.stochastic if at_random else m.nearest).lost for name, m in moves.items()}
    if not losses or (typical := median(losses.values())) <= SOME:
        return
    worst = sorted(losses, key=lambda name: -losses[name])[:3]
    dtypes = " and ".join(sorted({moves[name].dtype for name in worst}))
    named = ", ".join(f"{name} ({losses[name]:.0%})" for name in worst)
    words = _of_noise if at_random else _of_loss
    yield RULE.finding(
        f"{case.checkpoint.folder.name}: {len(losses)} changed weights",
        words(moves, typical, dtypes, named),
        f"less than {SOME:.0%}",
        "Merge with --dtype f32 to keep all of it, or compare the merged model with the unmerged one."
        + ("" if at_random else _alternative(moves)),
        severity="warning" if typical > MOST and not at_random else "info",
    )


def _of_loss(moves: Mapping[str, Move], typical: float, dtypes: str, named: str) -> str:
    share, cosine = (median(getattr(m.nearest, what) for m in moves.values()) for what in ("share", "cosine"))
    left = f"{share:.0%} of its length is kept, with a cosine of {cosine:.2f}"
    return f"rounding to {dtypes} takes {typical:.0%} of a typical update ({left}); most of all from {named}"


def _of_noise(moves: Mapping[str, Move], typical: float, dtypes: str, named: str) -> str:
    share = median(m.stochastic.share for m in moves.values())
    found = f"rounding to {dtypes} at random keeps {share:.0%} of a typical update and adds noise of {typical:.0%} of"
    return f"{found} its size; most of all to {named}"


def _alternative(moves: Mapping[str, Move]) -> str:
    noise = median(m.stochastic.lost for m in moves.values())
    return f" --rounding stochastic keeps all of it on average, and adds noise of {noise:.0%} of its size."


RULE = Rule("N508", "rounding-loss", "warning", check, deep=True, modes=("F39",))
