"""LoRA, arXiv:2106.09685, and its rank-stabilised scale, arXiv:2312.03732.

    W' = W + s · B A        s = α / r, or α / √r with use_rslora

W (out, in)    A (r, in)    B (out, r)

A convolution's W and A flatten all axes but the first. A layer that stores Wᵀ (Conv1D of GPT-2) has the same formula
with the factors' roles swapped: (B A)ᵀ = Aᵀ Bᵀ. Keys: `M.lora_A.weight`, `M.lora_B.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping

from suture.methods.base import (
    Array,
    BindError,
    Factors,
    Method,
    Target,
    check_rank,
    matrix_cols,
    misfit,
    rows_lost,
    weight_of,
)
from suture.values import Param, TensorInfo, Term, Update, View


def rows(w: Array, f: Factors, s: float, i: slice) -> Array:
    """w + s · B[i] A, in PEFT's order: the product, then the scale, then the sum."""
    delta = f["B"][i] @ f["A"]
    delta *= s
    w += delta
    return w


def bind(target: Target, tensors: Mapping[str, TensorInfo]) -> Update:
    """The update of a linear or convolution weight by A and B."""
    weight = weight_of(target)
    factors = oriented(target, weight, tensors["A"], tensors["B"])
    n_rows, cols = factors["B"].size[0], factors["A"].size[1]
    term = Term("lora", target.module, factors, target.scale, 0, n_rows, target.rank)
    return Update(weight.name, weight.shape, cols, None, (term,))


def oriented(target: Target, weight: Param, a: TensorInfo, b: TensorInfo) -> dict[str, View]:
    """A and B as views in the orientation in which the weight is stored.

    Raises:
        BindError: shapes that do not fit, a rank that is not the config's, or a square weight of unknown orientation.
    """
    rank = a.shape[0] if a.shape else 0
    if len(a.shape) < 2 or len(b.shape) < 2 or b.shape[1] != rank or any(n != 1 for n in b.shape[2:]):
        raise misfit(target, weight, a, b)
    check_rank(target, a, rank)
    va = View.whole(a, (rank, matrix_cols(a.shape, "Conv")))
    vb = View.whole(b, (b.shape[0], rank))
    stored = (weight.shape[0], matrix_cols(weight.shape, weight.kind))
    straight, swapped = {"A": va, "B": vb}, {"A": vb.T, "B": va.T}
    n_out, n_in = vb.size[0], va.size[1]
    if weight.kind == "Conv1D" or (weight.kind == "Unknown" and stored != (n_out, n_in)):
        fits, factors = stored == (n_in, n_out), swapped
    else:
        # a padded vocabulary may have more rows than the adapter was trained on; the padding stays as it is
        fits, factors = (stored[0] >= n_out if target.is_end else stored[0] == n_out) and stored[1] == n_in, straight
    if not fits and target.is_end and stored[0] < n_out and stored[1] == n_in:
        raise rows_lost(weight, b, n_out)
    if not fits:
        raise misfit(target, weight, a, b)
    if weight.kind == "Unknown" and n_in == n_out and target.fan_in_fan_out:
        raise BindError(
            "M303",
            f"{weight.name} is square and its class is unknown, with fan_in_fan_out true in the config",
            "a model class that says whether the weight is stored transposed",
            "Install a Transformers version that knows this architecture.",
        )
    return factors


METHOD = Method(
    suffixes={".lora_A.weight": "A", ".lora_B.weight": "B"},
    kinds=frozenset({"Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d", "Unknown"}),
    bind=bind,
    rows=rows,
    axes={"B": ("rows", "rank"), "A": ("rank", "cols")},
    transposed=("lora", {"A": "B", "B": "A"}),
)
