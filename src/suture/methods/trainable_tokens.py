"""Trainable tokens of PEFT: rows of an embedding replaced by trained ones.

    E'[t_j] = D[j]

E (tokens, dim)    D (n, dim)    t the n row numbers, from trainable_token_indices in the config

The tensor's name says delta, but it holds whole rows. Key: `M.token_adapter.trainable_tokens_delta`.
Source: peft/tuners/trainable_tokens/layer.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from suture.methods.base import Array, BindError, Factors, Method, Target, misfit, weight_of
from suture.values import TensorInfo, Term, Update, View


def rows(w: Array, f: Factors, s: float, i: slice) -> Array:
    """Rows of D in the place of those of E whose numbers fall into i."""
    t = f["rows"]
    here = (t >= i.start) & (t < i.stop)
    w[t[here] - i.start] = f["D"][here]
    return w


def bind(target: Target, tensors: Mapping[str, TensorInfo]) -> Update:
    """The update of single rows of an embedding or of an output head."""
    weight, d, ids = weight_of(target), tensors["D"], target.token_ids
    if len(d.shape) != 2 or len(weight.shape) != 2 or d.shape[1] != weight.shape[1]:
        raise misfit(target, weight, d)
    if len(ids) != d.shape[0] or len(set(ids)) != len(ids):
        raise BindError(
            "M305",
            f"{d.name} has {d.shape[0]} rows, the config names {len(ids)} tokens for {target.module}",
            "one row number in trainable_token_indices for each row of the tensor, none twice",
            "Use the config that was saved with this file.",
        )
    if max(ids, default=0) >= weight.shape[0] or min(ids, default=0) < 0:
        raise BindError(
            "T403",
            f"token {max(ids)} is trained, but {weight.name} has only {weight.shape[0]} rows",
            f"a base model with at least {max(ids) + 1} rows",
            "Resize the base's embeddings as it was done for training, and save that as the base.",
        )
    term = Term("trainable_tokens", target.module, {"D": View.whole(d)}, 1.0, 0, weight.shape[0], rows_changed=ids)
    return Update(weight.name, weight.shape, weight.shape[1], None, (term,))


METHOD = Method(
    suffixes={".token_adapter.trainable_tokens_delta": "D"},
    bind=bind,
    rows=rows,
    axes={"D": ("list", "cols")},
)
