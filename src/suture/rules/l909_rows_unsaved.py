"""# L909 rows-unsaved

## What it finds
A model whose vocabulary was resized, and an adapter whose file would hold no matrix with the new rows.

## Why it matters
The rows of new tokens are drawn at random when the vocabulary is resized. If no file holds them, loading fails at
best; at worst the vocabulary is resized once more and other rows are drawn, so that the new tokens mean nothing. PEFT
saves the embeddings by itself only in some cases: not for multimodal models, not for target modules given as a
pattern, not when it cannot look the base up.

## How it is detected
The rows of the input embedding in memory are compared with those of the base on the disk (where the model was loaded
from). If they differ, some matrix with the new number of rows must be among the tensors that the adapter holds.

## How to fix
Train the ends in full (`modules_to_save=["embed_tokens", "lm_head"]`), train the new tokens
(`trainable_token_indices`), or save with `save_embedding_layers=True`. Or save the resized base and train on that.

## References
- huggingface/peft#1300, huggingface/peft#2898: which embeddings are saved
- huggingface/peft#1147: new tokens that were not saved
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, from_audit
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """Rows of the vocabulary that no file would hold."""
    return from_audit(audit, RULE, "new rows in the adapter, or in the base's files")


RULE = Rule("L909", "rows-unsaved", "error", live=live, modes=("F12",))
