"""# T403 vocabulary-rows

## What it finds
Numbers of rows that cannot be right: a trained token beyond the base's vocabulary, a LoRA for more tokens than the base
has, a saved embedding with fewer rows than the base, or an embedding and a head that would end with different numbers
of rows.

## Why it matters
New tokens need rows at both ends of the model. Rows that are not in the adapter's file are lost: they were drawn at
random when the vocabulary was resized, and resizing once more draws others. A model with an embedding for a token and
no output for it cannot say it. A LoRA on a resized embedding is a change of rows, and without the rows themselves,
which only the resized matrix holds, there is nothing to add it to.

## How it is detected
From the shapes in both headers and from `trainable_token_indices`, before anything is written.

## How to fix
Train with both ends in `modules_to_save`, or both as LoRA targets, so that the file has the rows of both; or resize
the base as it was done for training, save it, and merge onto that. For a LoRA on a resized embedding, save the adapter
with `save_embedding_layers=True`: PEFT does so by itself only where it notices the new size.

## References
- huggingface/peft#1300, huggingface/peft#2898: which embeddings are saved
- huggingface/peft#1147: new tokens that were not saved
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, from_problems
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """Rows that are missing at one end."""
    return from_problems(case, RULE.code, RULE.name)


RULE = Rule("T403", "vocabulary-rows", "error", check, modes=("F12", "F28", "F34"))
