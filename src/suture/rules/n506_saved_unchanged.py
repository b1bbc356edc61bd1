"""# N506 saved-unchanged

## What it finds
A matrix that should have been trained in full (`modules_to_save`, or the rows of `trainable_token_indices`), and that
has exactly the values of the base.

## Why it matters
Training never moved it. It got no gradient, its learning rate was zero, it was frozen when the adapter was loaded again
to go on, or a tool saved the untouched copy instead of the trained one. The merge is right and changes nothing there:
new tokens stay unknown, a head stays as it was, and the file is larger for nothing.

## How it is detected
With `check --deep`: each matrix that the config names in `modules_to_save`, and each list of trained tokens, is
compared with the base, value for value, up to the first difference. Copies that PEFT saves by itself (an embedding
whose vocabulary was resized) are not meant to be trained, and are passed over. In 16 bits a tiny learning rate can
leave a matrix unchanged too: each step is rounded away.

## How to fix
Look at the trainable parameters before training (`model.print_trainable_parameters()`, or `suture train`, whose audit
names every one), and at their gradients after the first step. Keep what trains in full in float32.

## References
- unslothai/unsloth#9326: matrices in modules_to_save that were never trained
- huggingface/peft#1402: parameters without gradient
- huggingface/peft#2450: saving modules_to_save from sharded training
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, listed
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the tensors."""
    still = case.measures.still if case.measures else ()
    if still:
        yield RULE.finding(
            f"{case.adapter.file}: {listed(still)}",
            f"{len(still)} {'tensor that was' if len(still) == 1 else 'tensors that were'} to be trained in full"
            f" {'has' if len(still) == 1 else 'have'} the base's values, all of them",
            "values that training has moved",
            "Look whether these modules got gradients and a learning rate. The merge changes nothing there.",
        )


RULE = Rule("N506", "saved-unchanged", "warning", check, deep=True, modes=("F10", "F11"))
