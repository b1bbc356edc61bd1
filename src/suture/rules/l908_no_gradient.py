"""# L908 no-gradient

## What it finds
Tensors of the adapter that the loss does not reach: a backward pass leaves them without a gradient, or with one that
is not finite.

## Why it matters
Model code does not always call a layer: it may read its weight directly (Mamba's output projection, fused
cross-entropy on the head), skip it (a vision tower without images), or cut the graph (gradient checkpointing without
input gradients). The factors there stay as they began, the loss goes down thanks to the others, and nobody notices.
Where the forward pass uses the weight directly, the merged model even computes something else than the trained one.

## How it is detected
One backward pass, with small random values in place of the zeros of B so that A is reached too. Weights, gradients,
random numbers and modes are put back afterwards. By default random tokens are fed: what text does not reach, such as
the tower of a model's images, is told only when a batch is passed (`batch=`).

## How to fix
Leave these modules out of `target_modules`; switch off the fused kernel that goes around them; call
`model.enable_input_require_grads()` with gradient checkpointing.

## References
- huggingface/peft#2274: Mamba's weights are used directly
- huggingface/peft#1402: factors that stay zero
- huggingface/trl#5977: a fused loss around the head's LoRA
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, from_audit
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """What a backward pass did not reach; or the news that none was made."""
    yield from from_audit(audit, RULE, "a finite gradient for every tensor of the adapter")
    if not audit.probed:
        why = f": {audit.notes[-1]}" if audit.notes else ""
        do = "Pass batch=, the arguments of a forward pass that gives a loss, to have gradients checked too."
        yield RULE.finding("model in memory", f"no backward pass was made{why}", "", do, severity="info")
        return
    for note in audit.notes:
        yield RULE.finding("model in memory", note, "", "Nothing, if that is as it should be.", severity="info")


RULE = Rule("L908", "no-gradient", "error", live=live, modes=("F10", "F25"))
