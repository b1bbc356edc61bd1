"""DoRA, arXiv:2402.09353: LoRA gives the direction of each output's weights, m their length.

    V = W + s · B A        W' = m · V / ‖V‖        (norm of each row)

W, V (out, in)    A (r, in)    B (out, r)    m (out,)

The norm is of this very base: another base gives another model, even with the same shapes.
Keys: those of LoRA and `M.lora_magnitude_vector`. A weight stored transposed uses `dora_columns`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from suture.methods import lora
from suture.methods.base import Array, Factors, Method, Target, misfit, weight_of
from suture.values import TensorInfo, Term, Update, View


def rows(w: Array, f: Factors, s: float, i: slice) -> Array:
    """m[i] · V[i] / ‖V[i]‖."""
    v = lora.rows(w, f, s, i)
    v *= (f["m"][i] / np.sqrt(np.square(v).sum(axis=1)))[:, None]
    return v


def bind(target: Target, tensors: Mapping[str, TensorInfo]) -> Update:
    """The update of a linear or convolution weight by A, B and the magnitude m."""
    weight, m = weight_of(target), tensors["m"]
    factors = lora.oriented(target, weight, tensors["A"], tensors["B"])
    n_rows, cols = factors["B"].size[0], factors["A"].size[1]
    stored_transposed = factors["A"].tensor == tensors["B"].name
    magnitudes = cols if stored_transposed else n_rows
    if m.n_values != magnitudes or max(m.shape, default=0) != magnitudes:
        raise misfit(target, weight, m)
    factors["m"] = View.whole(m, (magnitudes,))
    method = "dora_columns" if stored_transposed else "dora"
    term = Term(method, target.module, factors, target.scale, 0, n_rows, target.rank)
    return Update(weight.name, weight.shape, cols, None, (term,))


METHOD = Method(
    suffixes={".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_magnitude_vector": "m"},
    kinds=lora.METHOD.kinds,
    bind=bind,
    rows=rows,
    axes={**lora.METHOD.axes, "m": ("rows",)},
    transposed=("dora_columns", {"A": "B", "B": "A", "m": "m"}),
)
