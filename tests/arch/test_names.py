"""The algebra of names, held against the same operations on numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suture.arch.names import NotExpressible, Route, Step, follow
from suture.values import Part

STACK = Step("stack", (0,), "MergeModulelist(dim=0)")


def numbered(shape, start=0):
    return np.arange(start, start + math.prod(shape)).reshape(shape)


def equations_hold(parts, tensors, params):
    """Every part holds, and together they fill each parameter exactly once."""
    filled = {n: np.zeros(p.shape, int) for n, p in params.items()}
    for part in parts:
        index = tuple(i if isinstance(i, int) else slice(*i) for i in part.index)
        value = params[part.param][index]
        tensor = tensors[part.tensor]
        tensor = tensor if part.rows is None else tensor[slice(*part.rows)]
        if not np.array_equal(tensor, value.swapaxes(-1, -2) if part.transpose else value):
            return False
        filled[part.param][index] += 1
    return all((count == 1).all() for count in filled.values())


def run(route, tensors, params):
    return follow(route, {n: t.shape for n, t in tensors.items()}, {n: p.shape for n, p in params.items()})


def test_a_renaming_is_one_part_whatever_the_shapes():
    route = Route({"a": ("a",)}, ("a",), (), ("b",))
    assert follow(route, {"a": (7, 3)}, {"b": (5, 3)}) == (Part("a", "b"),)


@given(experts=st.integers(1, 5), rows=st.integers(1, 4), cols=st.integers(1, 4), axis=st.sampled_from([1, 2, -1, -2]))
def test_experts_stacked_and_concatenated(experts, rows, cols, axis):
    tensors = {
        f"{w}.{e}": numbered((rows, cols), 100 * e + 50 * (w == "up")) for w in ("gate", "up") for e in range(experts)
    }
    names = {w: tuple(f"{w}.{e}" for e in range(experts)) for w in ("gate", "up")}
    params = {"fused": np.concatenate([np.stack([tensors[n] for n in names[w]]) for w in ("gate", "up")], axis)}
    route = Route(names, ("gate", "up"), (STACK, Step("concatenate", (axis,), "Concatenate")), ("fused",))
    assert equations_hold(run(route, tensors, params), tensors, params)


def test_a_concatenation_takes_patterns_in_its_own_order():
    tensors = {"up": numbered((2, 3)), "gate": numbered((2, 3), 50)}
    params = {"fused": np.concatenate([tensors["gate"], tensors["up"]])}
    route = Route({"up": ("up",), "gate": ("gate",)}, ("gate", "up"), (Step("concatenate", (0,), ""),), ("fused",))
    assert equations_hold(run(route, tensors, params), tensors, params)


@given(length=st.integers(1, 9), pieces=st.integers(1, 4), ndim=st.integers(1, 3))
def test_chunks_are_ranges_of_rows(length, pieces, ndim):
    tensor = numbered((length, 2, 3)[:ndim])
    size = math.ceil(length / pieces)
    cut = [tensor[i * size : (i + 1) * size] for i in range(pieces)]
    params = {f"p{i}": piece for i, piece in enumerate(cut)}
    route = Route({"t": ("t",)}, ("t",), (Step("chunk", (0,), "Chunk(dim=0)"),), tuple(params))
    if all(len(piece) for piece in cut):
        assert equations_hold(run(route, {"t": tensor}, params), {"t": tensor}, params)
    else:
        with pytest.raises(NotExpressible):
            run(route, {"t": tensor}, params)


def test_a_split_takes_the_lengths_of_its_parameters():
    tensor = numbered((6, 2))
    params = {"q": tensor[:4], "k": tensor[4:5], "v": tensor[5:]}
    route = Route({"t": ("t",)}, ("t",), (Step("split", (0,), "Split(dim=0)"),), tuple(params))
    assert equations_hold(run(route, {"t": tensor}, params), {"t": tensor}, params)


@pytest.mark.parametrize("shape", [(3, 2), (4, 3, 2)])
def test_a_transpose_of_the_last_two_axes(shape):
    tensor = numbered(shape)
    params = {"p": tensor.swapaxes(-1, -2)}
    route = Route({"t": ("t",)}, ("t",), (Step("transpose", (-2, -1), "Transpose"),), ("p",))
    assert run(route, {"t": tensor}, params) == (Part("t", "p", transpose=True),)
    assert equations_hold(run(route, {"t": tensor}, params), {"t": tensor}, params)


def test_stacked_matrices_may_be_transposed_afterwards():
    tensors = {f"t{e}": numbered((3, 2), 10 * e) for e in range(4)}
    params = {"p": np.stack(list(tensors.values())).swapaxes(1, 2)}
    route = Route({"t": tuple(tensors)}, ("t",), (STACK, Step("transpose", (1, 2), "Transpose(1, 2)")), ("p",))
    parts = run(route, tensors, params)
    assert parts[2] == Part("t2", "p", (2,), transpose=True)
    assert equations_hold(parts, tensors, params)


def test_a_checked_transpose_leaves_what_fits():
    route = Route({"t": ("t",)}, ("t",), (Step("transpose", (0, 1), "Transpose(0, 1)", checked=True),), ("p",))
    assert follow(route, {"t": (2, 3)}, {"p": (2, 3)}) == (Part("t", "p"),)
    assert follow(route, {"t": (3, 2)}, {"p": (2, 3)}) == (Part("t", "p", transpose=True),)


@pytest.mark.parametrize(
    ("steps", "shape", "params", "why"),
    [
        ([Step("other", (), "Interleave(dim=1)")], (4, 2), {"p": (4, 2)}, "Interleave"),
        ([Step("chunk", (1,), "Chunk(dim=1)")], (2, 4), {"p": (2, 2), "q": (2, 2)}, "not its first"),
        ([Step("chunk", (0,), "Chunk(dim=0)")], (4, 2), {"p": (2, 2), "q": (3, 2)}, r"instead of \[3, 2\]"),
        ([Step("transpose", (0, 2), "Transpose(0, 2)")], (2, 3, 4), {"p": (4, 3, 2)}, "change places"),
        ([Step("transpose", (1, 2), "Transpose(1, 2)")], (2, 3), {"p": (2, 3)}, "2 axes"),
        ([Step("split", (0,), "Split(dim=0)")], (5, 2), {"p": (2, 2), "q": (2, 2)}, "5 rows"),
    ],
)
def test_what_parts_cannot_say_is_an_error_with_a_reason(steps, shape, params, why):
    route = Route({"t": ("t",)}, ("t",), tuple(steps), tuple(params))
    with pytest.raises(NotExpressible, match=why):
        follow(route, {"t": shape}, params)


def test_a_result_the_model_does_not_have_is_an_error():
    route = Route({"t": ("t",)}, ("t",), (Step("chunk", (0,), "Chunk(dim=0)"),), ("p", "q"))
    with pytest.raises(NotExpressible, match="no q"):
        follow(route, {"t": (4, 2)}, {"p": (2, 2)})


def test_tensors_of_different_shapes_are_not_stacked():
    route = Route({"t": ("a", "b")}, ("t",), (STACK,), ("p",))
    with pytest.raises(NotExpressible, match="different shapes"):
        follow(route, {"a": (2, 2), "b": (3, 2)}, {"p": (2, 2, 2)})
