"""The kinds of mutants that may survive: nothing is said, and the merge is another one. Each with its reason.

An adapter with a ledger beside it has no survivors: every change of its files, and another base, are told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mutants import Mutant

PERMUTED = "same names, shapes and norms; only its order is wrong"
WISHED = "the field says what the file means, and another value is just as good a wish"
FOREIGN = "names and shapes are right, and LoRA's factors hold nothing of the base that they were trained on"
ROWS = "trained rows could be compared with the base's: they stay near them, under their own numbers"
EMBEDDING_AND_HEAD = ("llama: embedding and head in full", "llama: lora on embedding and head")
DORA = ("llama: dora", "gemma2: dora on both ends", "vit: dora on convolutions")
IN_FULL = ("llama: embedding and head in full", "vit: classifier in full", "whisper: head in full")
RESIZED = ("llama-tied: new tokens, resized", "olmoe: lora on both ends, resized")


@dataclass(frozen=True)
class Why:
    """Why a kind survives, and in which subjects; none named: in any."""

    reason: str
    only: tuple[str, ...] = ()


# Nothing in the files of base and adapter can tell.
NOTHING_TELLS: Mapping[str, Why] = {
    "place: rows of a B interleaved as for rotary positions": Why(PERMUTED),
    "place: pairs of two layers exchanged": Why(PERMUTED),
    "place: B of two modules exchanged": Why(PERMUTED),
    "place: both factors of a pair transposed": Why(f"on square matrices: {PERMUTED}"),
    "place: columns of experts' B packed the other way": Why(f"without lora_B_layout: {PERMUTED}"),
    "place: values of a magnitude permuted": Why(f"{PERMUTED}; rows of tiny models have nearly one norm", DORA),
    "damaged: one second factor is noise of its norm": Why("a trained factor looks like noise"),
    "config: lora_alpha doubled": Why(WISHED),
    "config: use_rslora flipped": Why(WISHED),
    "config: alpha_pattern for one module": Why(WISHED),
    "config: alpha_pattern removed": Why(WISHED),
    "config: lora_B_layout expert_major": Why(WISHED),
    "config: target_modules and the tensors of one kind are gone": Why("config and file agree"),
    "base: other values everywhere": Why(FOREIGN),
    "base: fine-tuned further": Why(FOREIGN),
    "base: this adapter is merged already, by a tool without a receipt": Why(FOREIGN),
    "base: more tokens": Why("rows that a base has beyond the adapter's are taken for padding, and stay"),
    "base: fewer tokens": Why(
        "whole matrices with more rows than the base's are those of a resized vocabulary",
        (*EMBEDDING_AND_HEAD, "gemma2: dora on both ends"),
    ),
    "shape: B without its last rows": Why("a head may have been padded after training", EMBEDDING_AND_HEAD),
    "shape: A without its last columns": Why("an embedding may have been padded after training", EMBEDDING_AND_HEAD),
}

# A rule could tell, and none does yet. An entry goes away with the rule that finds it.
NOT_TOLD_YET: Mapping[str, Why] = {
    "config: lora_alpha removed": Why("PEFT always writes it", ("llama: rslora", "phi3: rslora")),
    "damaged: one exponent bit of one value": Why("sizes of updates are not measured for DoRA", DORA),
    "place: rows of a whole matrix permuted": Why(ROWS, IN_FULL),
    "zero: a whole matrix": Why("a trained matrix is not all zero", IN_FULL),
    "place: rows of tokens permuted": Why(ROWS),
    "difference: trained tokens": Why(ROWS),
    "config: tokens: other ids": Why(ROWS),
    "config: tokens: other order": Why(ROWS),
    "zero: trained tokens": Why("trained rows are not all zero", RESIZED),
    "zero: the new rows": Why("a resized matrix with LoRA on top: its new rows are not looked at", RESIZED),
    "equal: the new rows": Why("a resized matrix with LoRA on top: its new rows are not looked at", RESIZED),
    "zero: one A": Why("a resized matrix with LoRA on top counts as trained in full", RESIZED),
}


def is_expected(mutant: Mutant) -> bool:
    """True for a survivor that is in a table."""
    why = NOTHING_TELLS.get(mutant.kind) or NOT_TOLD_YET.get(mutant.kind)
    if why is None or "with its ledger" in mutant.subject:
        return False
    return not why.only or mutant.subject in why.only
