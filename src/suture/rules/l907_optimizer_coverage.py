"""# L907 optimizer-coverage

## What it finds
An optimiser that does not hold exactly what trains: tensors that are missing, that it holds twice, that are not in
the model any more, or that have a learning rate of zero.

## Why it matters
What the optimiser does not hold never moves, however good the gradients are. It happens when the optimiser was made
before the adapter, when parameters were sorted into groups by name, or when a model was moved or wrapped in between.

## How it is detected
Pass the optimiser: `suture.check(model, optimizer=optimizer)`. Its groups are compared with the parameters by
identity, not by name.

## How to fix
Make the optimiser last, from `[p for p in model.parameters() if p.requires_grad]`, each parameter in one group.

## References
- huggingface/trl#6700: an optimiser that holds nothing
- unslothai/unsloth#9331: embeddings that never moved
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, from_audit
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """The optimiser's contents against what trains."""
    return from_audit(audit, RULE, "every trainable tensor once, with a learning rate above zero")


RULE = Rule("L907", "optimizer-coverage", "error", live=live, modes=("F09", "F10"))
