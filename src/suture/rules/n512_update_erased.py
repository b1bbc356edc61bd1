"""# N512 update-erased

## What it finds
An update that does not survive when the merged weights are quantised as the base's are (`--output same`).

## Why it matters
Quantised weights can only take few values. A change that is small beside the distance of two of them moves hardly any
weight, and those that it moves go too far. Then the merged model is the base, with some noise, whatever the files say.
In four bits that is the fate of most adapters. The cosine of the update and the change that arrives, measured on
normal weights with a LoRA of rank 16, by the size of the update beside the weights' norm:

| | 10 % | 5 % | 2 % | 1 % | 0.5 % | 0.1 % |
|---|---|---|---|---|---|---|
| NF4 | 0.74 | 0.35 | 0.04 | 0.03 | 0.03 | 0.01 |
| FP4 | 0.62 | 0.31 | 0.17 | 0.19 | 0.16 | 0.01 |
| int8, a scale a row | 1.00 | 0.99 | 0.93 | 0.77 | 0.32 | 0.00 |
| FP8, blocks of 128 × 128 | 0.97 | 0.89 | 0.69 | 0.49 | 0.30 | 0.02 |

## How it is detected
Before anything is written, by `--output same` with a merge or with `check --deep`: for sampled runs of rows of every
weight that LoRA or DoRA changes, W + ΔW is quantised by the same library and dequantised, and the change from W is
compared with ΔW. An error when the typical weight (the median) has a cosine below 0.5, or any weight one below 0.1,
unless its update is small even beside the others (a tenth of the typical share of the norm): it was hardly trained. A
warning when the median is below 0.9. The table by layer is in `--json`, under `layers`: norms, cosine, and the
relative error ‖applied − ΔW‖ / ‖ΔW‖. With a cosine of 0.5 more than half of what arrives is noise, by size.

## How to fix
Merge with `--output dense`, or onto the 16-bit original, and serve that, or quantise it with a method that calibrates.
Or serve the quantised base with the adapter unmerged: that is exact. `--ignore N512` writes the model all the same.

## References
- arXiv:2305.14314: QLoRA, which keeps the adapter apart
- huggingface/peft#2321: merging into 4-bit weights changes what the model says
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from suture.measures import Survival
from suture.rules.base import Case, Rule, listed
from suture.values import Finding

TYPICAL, ANY, GOOD = 0.5, 0.1, 0.9  # cosines
HARDLY = 0.1  # of the typical update


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: the typical weight, and those that lose all."""
    if not case.survival:
        return
    typical = median(layer.cosine for layer in case.survival)
    trained = HARDLY * median(_share(layer) for layer in case.survival)
    lost = [layer.tensor for layer in case.survival if not layer.cosine >= ANY and _share(layer) >= trained]
    if typical >= GOOD and not lost:
        return
    bad = bool(lost) or not typical >= TYPICAL
    found = survived(case.survival) + (f"; {len(lost)} below {ANY}: {listed(lost)}" if lost else "")
    yield RULE.finding(
        f"{case.checkpoint.folder.name}: {len(case.survival)} weights that are quantised again",
        found,
        f"a cosine of at least {TYPICAL if bad else GOOD} with the update",
        "Merge with --output dense, or serve the quantised base with the adapter unmerged.",
        severity="error" if bad else "warning",
    )


def survived(layers: Sequence[Survival]) -> str:
    """What arrives of the update, in a line."""
    cosines = [layer.cosine for layer in layers]
    spread = f"{median(cosines):.2f} ({min(cosines):.2f} to {max(cosines):.2f})"
    size = f"{median(_share(layer) for layer in layers):.2%} of the weights' norm"
    return f"what quantisation leaves of the update, {size}, has a cosine of {spread} with it"


def _share(layer: Survival) -> float:
    return layer.update / layer.base if layer.base else 0.0


RULE = Rule("N512", "update-erased", "error", check, may_ignore=True, deep=True, modes=("F39",))
