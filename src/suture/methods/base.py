"""What an adapter method is: the tensors it claims, how they bind to a parameter, and a formula on rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy.typing as npt

from suture.values import Param, TensorInfo, Update

Array: TypeAlias = npt.NDArray[Any]
Factors: TypeAlias = Mapping[str, Array]
Blocks: TypeAlias = Callable[[], Iterable[tuple[slice, Array]]]
Axis: TypeAlias = Literal["rows", "cols", "rank", "list"]


@dataclass(frozen=True, slots=True)
class Target:
    """A module that an adapter's tensors belong to, with what the adapter's config says about it."""

    module: str
    weight: Param | None  # the parameter that low-rank factors change
    bias: Param | None
    rank: int  # as configured, after rank_pattern
    scale: float  # alpha / r or alpha / sqrt(r), after alpha_pattern
    token_ids: tuple[int, ...] = ()  # of trainable tokens
    fan_in_fan_out: bool = False  # as configured; decides only where the module's class is unknown
    peft_version: tuple[int, ...] | None = None  # that wrote the file; decides the axes of square experts
    expert_major: bool = False  # experts: B is (out, experts, r) instead of PEFT's (out, r, experts)
    is_end: bool = False  # of the vocabulary: only there the adapter and the base may differ in rows


class BindError(Exception):
    """The tensors do not fit their module. `code` is the rule that explains it."""

    def __init__(self, code: str, found: str, expected: str, do: str) -> None:
        super().__init__(found)
        self.code, self.found, self.expected, self.do = code, found, expected, do


@dataclass(frozen=True, slots=True)
class Method:
    """One adapter method. Its module's docstring is its page: formula, shapes, source.

    Args:
        suffixes: key suffix in the adapter file → the factor's short name in the formula. All must be present.
        kinds: the kinds of parameter it applies to; empty means any.
        bind: headers → the update of one parameter. Pure; raises BindError.
        rows: (w, f, s, i) → new rows, where w (rows, cols) are the rows `i` of W in float32 or float64, f the factors
            in the same type, oriented as W is stored, s the scale, and i a slice counted from the term's first row.
            It may write into w. None for methods whose terms use another method's formula.
        prepare: (blocks, f, s) → f with what needs a pass over all rows first; `blocks()` yields (i, w). Usually None.
        axes: factor → the axis of W that each of its own axes follows.
        transposed: the method and the factor names that say the same of Wᵀ; None if there is none.
    """

    suffixes: Mapping[str, str]
    kinds: frozenset[str] = frozenset()
    bind: Callable[[Target, Mapping[str, TensorInfo]], Update] | None = None
    rows: Callable[[Array, Factors, float, slice], Array] | None = None
    prepare: Callable[[Blocks, Factors, float], Factors] | None = None
    axes: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    transposed: tuple[str, Mapping[str, str]] | None = None


def weight_of(target: Target) -> Param:
    """The target's weight.

    Raises:
        BindError: the module has none.
    """
    if target.weight is None:
        raise BindError(
            "M301",
            f"{target.module} has no weight in the base model",
            "a linear, convolution or embedding module",
            "Check that the adapter was trained on this architecture.",
        )
    return target.weight


def check_rank(target: Target, a: TensorInfo, found: int) -> None:
    """The rank in the file must be the rank that the config gives.

    Raises:
        BindError: they differ.
    """
    if found != target.rank:
        raise BindError(
            "M304",
            f"{a.name} has rank {found}",
            f"rank {target.rank}, from r and rank_pattern in adapter_config.json",
            "Use the config that was saved with this file: the scale alpha/r depends on it.",
        )


def misfit(target: Target, weight: Param, *tensors: TensorInfo) -> BindError:
    """The error for factors whose shapes do not give a matrix of the weight's shape."""
    found = ", ".join(f"{t.name.rpartition(target.module)[2].lstrip('.')} {list(t.shape)}" for t in tensors)
    return BindError(
        "M303",
        f"the factors do not fit: {found}",
        f"factors of {weight.name} {list(weight.shape)} ({weight.kind})",
        "Merge onto the base model that the adapter was trained on (size and revision).",
    )


def rows_lost(weight: Param, factor: TensorInfo, n_rows: int) -> BindError:
    """The error for factors of a resized vocabulary whose matrix is not in the file."""
    return BindError(
        "T403",
        f"{factor.name} was trained for {n_rows} tokens, {weight.name} has {weight.shape[0]}, and the file does not"
        " hold the resized matrix",
        f"a base with {n_rows} rows, or the matrix of {n_rows} rows in the adapter's file",
        "Save the adapter again with save_embedding_layers=True; or merge onto the resized base that it was trained on."
        " Resizing once more draws other rows.",
    )


def matrix_cols(shape: tuple[int, ...], kind: str) -> int:
    """Columns of a parameter read as a matrix: convolutions flatten all axes but the first, experts stack."""
    if len(shape) < 2:
        return 1
    return shape[-1] if kind == "Experts" else math.prod(shape[1:])
