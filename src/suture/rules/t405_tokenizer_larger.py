"""# T405 tokenizer-larger

## What it finds
A tokenizer, brought by the adapter, with more tokens than the merged model has rows in its input embedding; or the
same in the folder of a finished model.

## Why it matters
The tokens beyond the last row cannot be looked up: the model fails on the first text that holds one of them, or reads
memory that is not its own on some devices. It happens when tokens were added for training and the embedding was not
resized, or was resized and not saved.

## How it is detected
The tokens in the adapter's tokenizer are counted and compared with the rows of the input embedding after the merge.
In a finished model the largest id counts.

## How to fix
Train with the resized embedding in `modules_to_save`, or with `trainable_token_indices`, so that its rows are in the
file; or pass `--tokenizer base` if the new tokens are not needed.

## References
- huggingface/peft#1300, huggingface/peft#2898: which embeddings are saved
- unslothai/unsloth#3444: tokenizer and embedding of different sizes
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.model_folder import ModelFolder
from suture.rules.base import Case, Rule, listed
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, when the adapter's tokenizer was chosen and is too large."""
    n_tokens, n_rows = case.sides.n_tokens, _rows(case)
    if n_tokens is not None and n_rows is not None and n_tokens > n_rows:
        yield RULE.finding(
            f"{case.adapter.folder.name}: tokenizer",
            f"it has {n_tokens:,} tokens, the merged model's {case.arch.input_embedding} has {n_rows:,} rows",
            "a row for every token",
            "Train with the resized embedding in modules_to_save, or pass --tokenizer base.",
        )


def _rows(case: Case) -> int | None:
    """Rows of the input embedding after the merge; None if the model has none."""
    name = f"{case.arch.input_embedding}.weight"
    if name in case.settled.updates:
        return case.settled.updates[name].shape[0]
    return case.arch.params[name].shape[0] if name in case.arch.params else None


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """At most one finding, when an id lies beyond the rows that are stored."""
    tensor = model.tensor_of(f"{model.arch.input_embedding}.weight") if model.arch else None
    if tensor is None or not model.vocabulary or len(tensor.shape) != 2 or model.quantized.lonely:
        return
    beyond = [token for token, i in model.vocabulary.items() if i >= tensor.shape[0]]
    if beyond:
        yield RULE.finding(
            f"{tensor.file}: {tensor.name}",
            f"{tensor.shape[0]:,} rows, and {len(beyond)} tokens of the tokenizer have larger ids: {listed(beyond)}",
            "a row for every token",
            "Merge with the resized embedding that training used, or take the tokenizer of the base.",
        )


RULE = Rule("T405", "tokenizer-larger", "warning", check, model=check_model, modes=("F12", "F47"))
