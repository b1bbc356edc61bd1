"""# N507 update-outlier

## What it finds
Updates that are larger than the weights they are added to, or far larger than those of the other modules.

## Why it matters
A fine-tuned model is the old one with small changes: LoRA usually moves a weight matrix by 0.1 to 5 % of its size. An
update of the matrix' own size replaces what the base knew. It comes from a wrong scale (alpha that was meant for
another rank, a conversion that applied the scale twice, a pattern that matches too much), from a learning rate that was
much too high, or from one module that diverged.

## How it is detected
With `check --deep`: for some rows of each matrix (128, evenly spread) the size of the update, ‖ΔW‖, is divided by
that of the base's weights, ‖W‖. The rule speaks from 1 on, and for a module that is above 0.1 and above ten times the
median of all modules. In runs on a 135M model, from three steps to sixty and with learning rates from 2e-4 to 3e-3, the
median was between 0.03 % and 6 %, and no module above five times the median.

DoRA stretches the sum of weight and update to given lengths, which hides an update of any size: the damaged value of
one factor takes a row's whole direction and leaves its length. So for DoRA the update before stretching, ‖BA‖ / ‖W‖,
is looked at as well, with limits ten times as wide. On the same model its median was 0.5 % after thirty steps at 1e-3,
and the largest 2.3 %.

## How to fix
Compare `r`, `lora_alpha`, `use_rslora` and the patterns in `adapter_config.json` with the training script. If they are
right, look at the training loss; an earlier checkpoint may be the better one.

## References
- arXiv:2106.09685: LoRA and its scale
- huggingface/peft#1080: how large updates are against the weights
- https://huggingface.co/docs/peft/package_reference/lora: lora_alpha, use_rslora, alpha_pattern
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median

from suture.rules.base import Case, Rule
from suture.values import Finding

TOO_LARGE = 1.0
NOTABLE, FAR = 0.1, 10.0
DORA = 10.0  # times larger limits, before the stretching: it hides what is large from the model too


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the largest updates."""
    if case.measures is None:
        return
    moves = {m.tensor: m.ratio for m in case.measures.moves if m.update}
    turns = {t.tensor: t.ratio for t in case.measures.turns if t.ratio}
    odd = _odd(moves, 1.0) | _odd(turns, DORA)
    if odd:
        ratios = turns | moves
        worst = sorted(odd, key=lambda name: -odd[name])[:3]
        shown = ", ".join(f"{name} {odd[name]:.3g}" for name in worst)
        yield RULE.finding(
            case.adapter.file,
            f"{len(odd)} of {len(ratios)} updates are out of proportion, as a share of the weight they change: {shown};"
            f" the median is {median(ratios.values()):.2g}",
            "updates of a few percent of their weights, of about the same size everywhere",
            "Compare rank, alpha, use_rslora and the patterns with the training script; or take an earlier state.",
        )


def _odd(ratios: Mapping[str, float], limits: float) -> dict[str, float]:
    """Those that are too large, or notable and far above the others."""
    typical = median(ratios.values()) if ratios else 0.0
    return {
        name: ratio
        for name, ratio in ratios.items()
        if ratio >= limits * TOO_LARGE or (ratio > limits * NOTABLE and ratio > FAR * typical)
    }


RULE = Rule("N507", "update-outlier", "warning", check, deep=True, modes=("F19", "F20", "F61"))
