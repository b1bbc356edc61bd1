"""# L912 adapter-at-rest

## What it finds
An adapter that is merged into the weights in memory, or switched off.

## Why it matters
`merge_adapter()` and `disable_adapter_layers()` are made for a moment: to measure, or to compare with the base. If
the model is left like that, a forward pass goes around the factors, and training moves nothing. Saved while it is
merged, the adapter is whole, but the base in memory is no longer the one that it belongs to.

## How it is detected
Every layer of the adapter knows whether it is merged and whether it is switched off.

## How to fix
`model.unmerge_adapter()` or `model.enable_adapter_layers()`. Use `with model.disable_adapter():` for a comparison; it
puts things back by itself.

## References
- https://huggingface.co/docs/peft/developer_guides/lora: merging and unmerging in memory
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, from_audit
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """Layers that are merged or switched off."""
    return from_audit(audit, RULE, "factors that every forward pass goes through")


RULE = Rule("L912", "adapter-at-rest", "error", live=live, modes=("F09",))
