"""# N505 rows-untrained

## What it finds
Rows of new tokens that were never trained: all zero, equal to each other, or equal to the mean of the other rows.

## Why it matters
When tokens are added, the embedding gets rows for them: zeros, random values, or (by default in Transformers) the mean
of all old rows. If training does not reach the embedding, they stay like that. The model then takes every new token for
the same average word, and cannot tell an end-of-turn marker from any other of them. The tokenizer looks right, the
merge is right, and the model never stops, or does not understand its own template.

## How it is detected
With `check --deep`: up to 256 of the rows that a full matrix of the adapter has beyond the base's, and of the rows of
`trainable_token_indices`. A row counts as untrained if it is all zero, if another new row has the same values, or if it
lies within 5 % of the rows' spread around the mean of the old rows (the rows that Transformers draws differ from the
mean by less than 0.01 %; one pass over an ordinary data set moves a row by far more). If the adapter brings its
tokenizer, rows beyond its tokens are padding and not looked at; without one, the rule speaks only if all new rows are
untrained. Of a resized matrix that has a LoRA on top (`base_layer.weight` in the file), new rows count if they are all
zero, or if they are equal to each other with the LoRA added; below it they may well be equal, as Transformers draws
them.

## How to fix
Train the rows: `trainable_token_indices` with the ids of the new tokens, or embedding and head in `modules_to_save`;
and make sure that the new tokens occur in the training data. If they are not needed, leave them out of the tokenizer.

## References
- huggingface/peft#1300, huggingface/peft#2898: which embeddings are saved
- unslothai/unsloth#1343, unslothai/unsloth#3730: new tokens that do not work after training
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.measures import NewRows
from suture.rules.base import Case, Rule
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """One finding for each tensor with untrained rows."""
    for rows in case.measures.new_rows if case.measures else ():
        bad = rows.n_zero + rows.n_mean + rows.n_repeated
        if bad and (bad == rows.n_looked_at or case.sides.n_tokens is not None):
            yield RULE.finding(
                f"{case.adapter.file}: {rows.tensor}",
                f"{bad} of {rows.n_looked_at} rows of new tokens, from row {rows.first} on, look untrained: "
                f"{_kinds(rows)}",
                "a row of its own for each new token",
                "Train with trainable_token_indices, or with embedding and head in modules_to_save.",
            )


def _kinds(rows: NewRows) -> str:
    kinds = (
        (rows.n_zero, "all zero"),
        (rows.n_mean, "the mean of the old rows"),
        (rows.n_repeated, "the same as another new row"),
    )
    return ", ".join(f"{n} {what}" for n, what in kinds if n)


RULE = Rule("N505", "rows-untrained", "warning", check, deep=True, modes=("F12",))
