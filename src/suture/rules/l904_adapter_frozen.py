"""# L904 adapter-frozen

## What it finds
Tensors of the active adapter that do not require a gradient.

## Why it matters
`PeftModel.from_pretrained` loads an adapter for inference: everything is frozen unless `is_trainable=True` is passed.
Preparing a quantised model for training after the adapter was loaded freezes it as well. Some trainers then stop with
an error, others run to the end with an optimiser that holds nothing, and save what they loaded.

## How it is detected
`requires_grad` of every parameter that the adapter's file would hold.

## How to fix
Load with `is_trainable=True`; call `prepare_model_for_kbit_training` before the adapter is added, not after. To
freeze a part on purpose, leave it out of the adapter.

## References
- huggingface/peft#282, huggingface/peft#184: nothing trains after loading
- huggingface/trl#6700, huggingface/trl#4081: an empty optimiser, a frozen adapter
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, from_audit
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """Tensors of the adapter that are frozen."""
    return from_audit(audit, RULE, "every tensor of the adapter requires a gradient")


RULE = Rule("L904", "adapter-frozen", "error", live=live, modes=("F09",))
