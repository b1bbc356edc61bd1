"""# A215 quantized-apart

## What it finds
How far the weights that training saw, quantised and dequantised, are from the 16-bit weights, in the layers that were
quantised; and how far that is beside the adapter's update.

## Why it matters
Merged onto either, the same adapter gives two models that differ by this distance, which is often larger than the
update. The model on the dequantised weights is the one that was trained and evaluated; the one on the 16-bit weights is
free of the error of quantisation, but nobody has trained it.

## How it is detected
With `--deep` and `--onto dequantized`: sampled rows of every quantised layer are read as they are stored and as
training saw them. Norms are over these rows. The table by layer is in `--json`, under `layers`.

## How to fix
Nothing is wrong. Where the distance is small beside the update, either will do; where it is not, evaluate both.

## References
- arXiv:2305.14314: QLoRA
- unslothai/unsloth-zoo#810: a family of models that needs the dequantised base
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from suture.rules.base import Case, Rule
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: the typical layer, and the range."""
    layers = case.measures.apart if case.measures else ()
    if not layers:
        return
    shares = [layer.share for layer in layers]
    found = f"in {len(layers)} layers, quantisation moves the weights by {median(shares):.2%} of their norm "
    found += f"({min(shares):.2%} to {max(shares):.2%})"
    moved = [layer.quantized / layer.update for layer in layers if layer.update]
    if moved:
        found += f", which is {median(moved):.3g} times as far as the adapter moves them"
    yield RULE.finding(case.checkpoint.folder.name, found, "", "Evaluate both: --onto original and --onto dequantized.")


RULE = Rule("A215", "quantized-apart", "info", check, deep=True, modes=("F26",))
