"""# A207 magnitudes-differ

## What it finds
A DoRA adapter whose magnitudes do not fit the base: they are far from the lengths of the base's weight rows.

## Why it matters
DoRA stores, for every output of a layer, how long its row of weights shall be. Training starts these magnitudes at the
length of the base's own rows and moves them by little. The shape of the file is the same for every model of that size,
so an adapter of another base loads and merges without a word; each row is then stretched to the length that it had in
the other model. The same happens when a tool permuted the rows of one side and not of the other.

## How it is detected
With `check --deep`. For some rows of each layer (128, evenly spread) the magnitude is divided by the length of the
base's row; the median of the distance from 1 is taken for each layer. The rule speaks when a quarter of all layers are
off by more than 15 %. In runs on a 135M model, up to sixty steps at 1e-3, no layer was off by more than 0.7 %. With the
rows in another order, or those of the next layer in the place of a layer's own, the query projections were off by
30 %, the value projections by 10 %, and the MLP's outputs by 3 to 5 %. So a finding is strong evidence, and its absence
none: two versions of one model have rows of nearly the same lengths. A206 can tell those apart. Layers that are stored
transposed (Conv1D of GPT-2) are not measured.

## How to fix
Merge onto the base that the adapter was trained on; look at `base_model_name_or_path`, and at the revision. If that is
this base, the file was changed by a conversion: take the adapter as the trainer saved it.

## References
- arXiv:2402.09353: DoRA, where the magnitudes start
- huggingface/peft#3609: a magnitude that was computed on a changed base
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from suture.rules.base import Case, Rule, listed
from suture.values import Finding

FAR = 0.15
QUARTER = 0.25


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: in many layers the magnitudes are far from the base's."""
    moves = case.measures.moves if case.measures else ()
    shares = {move.tensor: move.magnitude for move in moves if move.magnitude is not None}
    far = {name: share for name, share in shares.items() if share > FAR}
    if not far or len(far) < QUARTER * len(shares):
        return
    yield RULE.finding(
        f"{case.adapter.file}: lora_magnitude_vector of {listed(far)}",
        f"in {len(far)} of {len(shares)} layers the magnitudes are more than {FAR:.0%} away from the lengths of the"
        f" base's rows, typically by {median(far.values()):.0%}",
        "magnitudes within a few percent, as training leaves them",
        "Merge onto the base that the adapter was trained on; or take the file as the trainer saved it.",
    )


RULE = Rule("A207", "magnitudes-differ", "warning", check, deep=True, modes=("F06", "F29"))
