"""Tensors that the adapter holds whole: they take the place of the base's.

    W' = W_adapter

From `modules_to_save`, from `bias="all"` or `"lora_only"`, and the `base_layer.weight` of embeddings that were
LoRA targets or whose vocabulary was resized. A LoRA on the same module is added to the replacement.
Keys: `M.weight`, `M.bias`, `M.base_layer.weight`, `M.base_layer.bias`, or any other parameter of M.
Source: peft/utils/save_and_load.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from suture.methods.base import BindError, Method, Target, matrix_cols, weight_of
from suture.values import TensorInfo, Update


def bind(target: Target, tensors: Mapping[str, TensorInfo]) -> Update:
    """The replacement of one parameter. Only the rows of a vocabulary may grow."""
    weight, new = weight_of(target), tensors["W"]
    same = new.shape == weight.shape
    other_rows = target.is_end and len(new.shape) == len(weight.shape) and new.shape[1:] == weight.shape[1:]
    if not same and not (other_rows and new.shape[0] > weight.shape[0]):
        raise BindError(
            "T403" if other_rows else "M303",
            f"{new.name} {list(new.shape)} would replace {weight.name} {list(weight.shape)}",
            "the same shape, or more rows of a vocabulary",
            "Merge onto the base model that the adapter was trained on (size and revision).",
        )
    return Update(weight.name, new.shape, matrix_cols(new.shape, weight.kind), new, ())


METHOD = Method(suffixes={}, bind=bind)
