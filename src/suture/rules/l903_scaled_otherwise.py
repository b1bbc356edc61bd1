"""# L903 scaled-otherwise

## What it finds
Layers that scale their update by another factor than the adapter's config says.

## Why it matters
An update counts `alpha / r` times (`alpha / √r` with rsLoRA). The layer keeps this number from the moment it was
made. If `lora_alpha`, `r` or a pattern is changed in the config afterwards, training goes on with the old factor, and
whoever loads the saved adapter uses the new one: every update is then too weak or too strong, without an error.

## How it is detected
The factor of every layer is compared with the one that `lora_alpha`, `r`, `rank_pattern`, `alpha_pattern` and
`use_rslora` give.

## How to fix
Set these fields before `get_peft_model`. If the model was trained with the factor that it has in memory, put the
config back.

## References
- huggingface/peft#2419: how patterns are matched
- vllm-project/vllm#6909: rsLoRA scaled as LoRA
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, from_audit
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """Factors in memory against the config's."""
    return from_audit(audit, RULE, "alpha / r of the config, or alpha / √r with use_rslora")


RULE = Rule("L903", "scaled-otherwise", "error", live=live, modes=("F19", "F20", "F61"))
