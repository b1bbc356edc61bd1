"""# L901 not-promised

## What it finds
A model in memory that does not hold what its adapter's config promises: modules without the factors that the config
asks for, factors that it does not ask for, or shapes that are not those of `r` and the base.

## Why it matters
Whoever loads the saved adapter builds it from the config. What the config does not name is dropped while loading, and
what it names in vain comes back untrained. The model that was tested in the notebook is then not the one that is
reloaded.

## How it is detected
The config is matched against the modules of the architecture by PEFT's own rules, and the names and shapes that
follow are compared with the parameters in memory, both ways.

## How to fix
Make the model with `get_peft_model` from the config that will be saved, and change neither afterwards. If layers were
replaced or `peft_config` was edited by hand, start again from the base.

## References
- huggingface/peft#2118, huggingface/peft#2084: adapters that load in part
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, from_audit
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """What the config promises against what the model holds."""
    return from_audit(audit, RULE, "the tensors that the adapter's config promises, with its shapes")


RULE = Rule("L901", "not-promised", "error", live=live, modes=("F05", "F51"))
