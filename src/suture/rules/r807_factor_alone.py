"""# R807 factor-alone

## What it finds
In a checkpoint's adapter: a `lora_A` without its `lora_B`, or the other way round; and pairs whose ranks differ.

## Why it matters
A change of a weight is the product of both factors. PEFT fills a missing one with a new, untrained factor and goes
on, so a resumed run has forgotten this module. With the base at hand M302 says the same; this needs the checkpoint
alone.

## How it is detected
From names and shapes in the header: both factors are there, and the rows of `lora_A` are as many as the columns of
`lora_B`.

## How to fix
Take the checkpoint before. If every checkpoint of the run lacks factors, look at how they are saved: names are
filtered, or parameters are not gathered.

## References
- huggingface/peft#2118: missing keys on loading
- huggingface/peft#453, huggingface/peft#2450: incomplete adapters saved under ZeRO-3
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from suture.rules.base import Rule, listed
from suture.run_folder import RunFolder
from suture.values import Finding, TensorInfo

PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
DO = "Take the checkpoint before; if all lack factors, look at how they are saved."


def check_run(run: RunFolder) -> Iterable[Finding]:
    """At most one finding for factors without partner, and one for ranks."""
    if run.adapter is None:
        return
    tensors = {name.replace(".default", ""): tensor for name, tensor in run.adapter.tensors.items()}
    alone = [name for name in tensors if (partner := partner_of(name)) and partner not in tensors]
    if alone:
        found = f"{len(alone)} factors have no partner: {listed(alone)}"
        yield RULE.finding(f"{run.weights}: {min(alone)}", found, "lora_A and lora_B for every module", DO)
    uneven = [name for name in tensors if _is_uneven(name, tensors)]
    if uneven:
        found = f"{len(uneven)} pairs have two ranks: {listed(uneven)}"
        yield RULE.finding(f"{run.weights}: {min(uneven)}", found, "one rank in both factors", DO)


def partner_of(name: str) -> str | None:
    """The name of the other factor; None for what is no factor."""
    for first, second in PAIRS:
        for one, other in ((first, second), (second, first)):
            if name.endswith(f".{one}"):
                return name.removesuffix(one) + other
    return None


def _is_uneven(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    if not name.endswith((".lora_A.weight", ".lora_embedding_A")):
        return False
    other = tensors.get(partner_of(name) or "")
    shapes = (tensors[name].shape, other.shape if other else ())
    if any(0 in shape or len(shape) < 2 for shape in shapes):
        return False  # which is R805's
    return shapes[0][0] != shapes[1][1]


RULE = Rule("R807", "factor-alone", "error", run=check_run, modes=("F11", "F21"))
