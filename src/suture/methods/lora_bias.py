"""The bias of LoRA's second factor (`lora_bias` of PEFT), added to the layer's own bias.

    b' = b + s · β

b, β (out,). Key: `M.lora_B.bias`. A layer without a bias cannot hold it. Source: peft/tuners/lora/layer.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from suture.methods.base import Array, BindError, Factors, Method, Target, misfit
from suture.values import TensorInfo, Term, Update, View


def rows(w: Array, f: Factors, s: float, i: slice) -> Array:
    """b[i] + s · β[i]."""
    w[:, 0] += s * f["b"][i]
    return w


def bind(target: Target, tensors: Mapping[str, TensorInfo]) -> Update:
    """The update of the layer's bias."""
    b = tensors["b"]
    if target.bias is None:
        raise BindError(
            "M303",
            f"{b.name} is the bias of a layer without bias",
            f"{target.module}.bias in the base model",
            "The architecture cannot hold it. Train without lora_bias, or on a model with biases.",
        )
    if b.shape != target.bias.shape:
        raise misfit(target, target.bias, b)
    term = Term("lora_bias", target.module, {"b": View.whole(b)}, target.scale, 0, b.shape[0])
    return Update(target.bias.name, target.bias.shape, 1, None, (term,))


METHOD = Method(suffixes={".lora_B.bias": "b"}, bind=bind, rows=rows, axes={"b": ("rows",)})
