"""# T408 rows-fewer

## What it finds
An adapter whose embedding or head has fewer rows than the base's: it was trained on a smaller vocabulary.

## Why it matters
Many bases have more rows than their tokenizer has tokens, because sizes that are multiples of 64 are faster. A
trainer that cut the matrix to the number of tokens gives an adapter with fewer rows. Such an adapter fits: its rows
are the first ones. It would not fit if the vocabulary had been another one, and the shapes alone do not tell the two
apart.

## How it is detected
The rows of the low-rank factors are compared with those of the base's matrix. The merge changes the first rows and
copies the rest from the base; it never makes the matrix smaller.

## How to fix
Nothing, if the base is padded. If the base has more tokens than the one that the adapter was trained on, merge onto
that one.

## References
- huggingface/peft#2368, huggingface/peft#2427: sizes of padded vocabularies
- axolotl-ai-cloud/axolotl#2277: an adapter with fewer rows than its base
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """One finding for each matrix of the vocabulary that the adapter knows in a smaller size."""
    ends = {case.arch.input_embedding, case.arch.output_embedding}
    for param, update in case.resolved.updates.items():
        rows = [t.stop for t in update.terms if t.method != "trainable_tokens" and t.factors]
        module = param.rpartition(".")[0]
        if module in ends and len(update.shape) == 2 and rows and max(rows) < update.shape[0]:
            yield RULE.finding(
                f"{case.adapter.file}: {module}",
                f"the adapter has {max(rows):,} rows for {param}, the base {update.shape[0]:,}: the last "
                f"{update.shape[0] - max(rows):,} stay as they are",
                "",
                "Nothing, if these rows only pad the base's vocabulary.",
            )


RULE = Rule("T408", "rows-fewer", "info", check, modes=("F34",))
