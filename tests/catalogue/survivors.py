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
EMBEDDING_AND_HEAD = ("llama: embedding and head in full", "llama: lora on embedding and head")
DORA = ("llama: dora", "gemma2: dora on both ends", "vit: dora on convolutions")


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
    "place: rows of a whole matrix permuted": Why("heads of classifiers are drawn anew", ("vit: classifier in full",)),
    "equal: the new rows": Why("with LoRA on top they differ", ("olmoe: lora on both ends, resized",)),
    "shape: A without its last columns": Why("an embedding may have been padded after training", EMBEDDING_AND_HEAD),
}


def is_expected(mutant: Mutant) -> bool:
    """True for a survivor that is in a table."""
    why = NOTHING_TELLS.get(mutant.kind)
    if why is None or "with its ledger" in mutant.subject:
        return False
    return not why.only or mutant.subject in why.only
