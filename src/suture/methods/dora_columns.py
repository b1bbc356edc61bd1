"""DoRA on a weight whose columns are the outputs: Conv1D of GPT-2 (in, out) and embeddings (tokens, dim).

    V = W + s · B A        W' = V · m / ‖V‖        (norm of each column)

W, V (rows, cols)    B (rows, r)    A (r, cols)    m (cols,)    n = ‖V‖ (cols,)

The norm of a column needs all rows, so a first pass over W gathers n, in float64 and in the order of the blocks.
Source: PEFT's DoraEmbeddingVariant and fan_in_fan_out. Keys: `M.lora_embedding_A`, `M.lora_embedding_B`,
`M.lora_magnitude_vector`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from suture.methods import embedding_lora, lora
from suture.methods.base import Array, Blocks, Factors, Method, Target, misfit, weight_of
from suture.values import TensorInfo, Term, Update, View


def prepare(blocks: Blocks, f: Factors, s: float) -> Factors:
    """n = ‖V‖ of each column."""
    total = np.zeros(f["m"].shape, np.float64)
    for i, w in blocks():
        total += np.square(lora.rows(w, f, s, i), dtype=np.float64).sum(axis=0)
    return {**f, "n": np.sqrt(total).astype(f["m"].dtype)}


def rows(w: Array, f: Factors, s: float, i: slice) -> Array:
    """V[i] · m / n."""
    v = lora.rows(w, f, s, i)
    v *= f["m"] / f["n"]
    return v


def bind(target: Target, tensors: Mapping[str, TensorInfo]) -> Update:
    """The update of an embedding by its factors and the magnitude m (dim,)."""
    weight, m = weight_of(target), tensors["m"]
    factors = embedding_lora.oriented(target, weight, tensors["embedding_A"], tensors["embedding_B"])
    n_rows, cols = factors["B"].size[0], factors["A"].size[1]
    if m.n_values != cols or n_rows != weight.shape[0]:
        raise misfit(target, weight, m)
    factors["m"] = View.whole(m, (cols,))
    term = Term("dora_columns", target.module, factors, target.scale, 0, n_rows, target.rank)
    return Update(weight.name, weight.shape, cols, None, (term,))


METHOD = Method(
    suffixes={
        ".lora_embedding_A": "embedding_A",
        ".lora_embedding_B": "embedding_B",
        ".lora_magnitude_vector": "m",
    },
    kinds=frozenset({"Embedding"}),
    bind=bind,
    rows=rows,
    prepare=prepare,
    axes={**lora.METHOD.axes, "m": ("cols",)},
    transposed=("dora", {"A": "B", "B": "A", "m": "m"}),
)
