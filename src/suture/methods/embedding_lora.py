"""LoRA on an embedding table, as PEFT stores it: transposed with respect to a linear layer.

    E' = E + s · (B A)ᵀ = E + s · Aᵀ Bᵀ

E (tokens, dim)    A (r, tokens)    B (dim, r)

The terms use LoRA's formula with the roles swapped. Keys: `M.lora_embedding_A`, `M.lora_embedding_B` (no `.weight`).
Source: peft/tuners/lora/layer.py, class Embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

from suture.methods.base import Method, Target, check_rank, misfit, rows_lost, weight_of
from suture.values import Param, TensorInfo, Term, Update, View


def bind(target: Target, tensors: Mapping[str, TensorInfo]) -> Update:
    """The update of an embedding table; rows beyond the adapter's (a padded vocabulary) stay as they are."""
    weight = weight_of(target)
    factors = oriented(target, weight, tensors["embedding_A"], tensors["embedding_B"])
    n_rows, cols = factors["B"].size[0], factors["A"].size[1]
    term = Term("lora", target.module, factors, target.scale, 0, n_rows, target.rank)
    return Update(weight.name, weight.shape, cols, None, (term,))


def oriented(target: Target, weight: Param, a: TensorInfo, b: TensorInfo) -> dict[str, View]:
    """Aᵀ and Bᵀ under the names that LoRA's formula gives to the left and right factor.

    Raises:
        BindError: shapes that do not fit, a rank that is not the config's, or tokens that the base does not have.
    """
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise misfit(target, weight, a, b)
    check_rank(target, a, a.shape[0])
    if b.shape[0] != weight.shape[1] or (a.shape[1] != weight.shape[0] and not target.is_end):
        raise misfit(target, weight, a, b)
    if a.shape[1] > weight.shape[0]:
        raise rows_lost(weight, a, a.shape[1])
    return {"B": View.whole(a).T, "A": View.whole(b).T}


METHOD = Method(
    suffixes={".lora_embedding_A": "embedding_A", ".lora_embedding_B": "embedding_B"},
    kinds=frozenset({"Embedding", "Unknown"}),
    bind=bind,
)
