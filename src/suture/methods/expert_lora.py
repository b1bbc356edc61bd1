"""LoRA on the fused experts of a mixture-of-experts layer (`target_parameters` of PEFT).

    W'[e] = W[e] + s · B_e A_e        A_e = A[e·r : (e+1)·r]    B_e = B[:, e::E]

W (E, out, in)    A (E·r, in), expert after expert    B (out, r·E), the expert's number runs fastest

Layers that store Wᵀ (gpt-oss: E, in, out) take the transpose. Three meanings of the same keys exist, and the file
decides between them or the merge refuses: PEFT ≤ 0.18 took axis 1 of W as the input also where it is the output
(`peft_version` tells where shapes cannot); old Unsloth packed B as (out, E·r) (`lora_B_layout` tells).
Source: peft/tuners/lora/layer.py, class ParamWrapper; PEFT pull request 3083.
"""

from __future__ import annotations

from collections.abc import Mapping

from suture.methods.base import BindError, Method, Target, check_rank, misfit, weight_of
from suture.values import Param, TensorInfo, Term, Update, View

SWAPPED_SINCE = (0, 19)


def bind(target: Target, tensors: Mapping[str, TensorInfo]) -> Update:
    """The update of a fused expert parameter, one term an expert."""
    weight, a, b = weight_of(target), tensors["A"], tensors["B"]
    n_experts, n_rows, n_cols = weight.shape
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or a.shape[0] % n_experts:
        raise misfit(target, weight, a, b)
    rank = a.shape[0] // n_experts
    check_rank(target, a, rank)
    product_is_transposed = _product_is_transposed(target, weight, a, b)
    terms = []
    for e in range(n_experts):
        left, right = _expert(b, e, n_experts, rank, expert_major=target.expert_major), View.whole(a)
        right = right.cut(0, e * rank, (e + 1) * rank)
        factors = {"B": right.T, "A": left.T} if product_is_transposed else {"B": left, "A": right}
        terms.append(Term("lora", target.module, factors, target.scale, e * n_rows, (e + 1) * n_rows, rank))
    return Update(weight.name, weight.shape, n_cols, None, tuple(terms))


def _expert(b: TensorInfo, e: int, n_experts: int, rank: int, *, expert_major: bool) -> View:
    if expert_major:
        return View.whole(b, (b.shape[0], n_experts, rank)).pick(1, e)
    return View.whole(b, (b.shape[0], rank, n_experts)).pick(2, e)


def _product_is_transposed(target: Target, weight: Param, a: TensorInfo, b: TensorInfo) -> bool:
    """True when W[e] gets (B_e A_e)ᵀ: decided by the shapes, by the PEFT version where both readings fit.

    Raises:
        BindError: neither reading fits, or both do and nothing tells which one was meant.
    """
    _, n_rows, n_cols = weight.shape
    straight = (b.shape[0], a.shape[1]) == (n_rows, n_cols)
    swapped = (b.shape[0], a.shape[1]) == (n_cols, n_rows)
    if not straight and not swapped:
        raise misfit(target, weight, a, b)
    if straight != swapped:
        return swapped
    if weight.transposed:
        return True
    if target.peft_version is None:
        raise BindError(
            "M307",
            f"{weight.name} is square ({n_rows} × {n_cols}) and the config has no peft_version",
            "peft_version in adapter_config.json: up to 0.18 the factors' axes were the other way round",
            'Add "peft_version" with the version that trained the adapter.',
        )
    return target.peft_version < SWAPPED_SINCE


METHOD = Method(
    suffixes={".lora_A.weight": "A", ".lora_B.weight": "B"},
    kinds=frozenset({"Experts"}),
    bind=bind,
)
