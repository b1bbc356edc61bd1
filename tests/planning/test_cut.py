"""An update of a parameter, carried onto a checkpoint tensor, is the tensor of the updated parameter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from methods.made import factors, linear, normal, target, tensor

from suture.methods import METHODS, dora, expert_lora, lora, trainable_tokens
from suture.planning.cut import NotExpressible, carry
from suture.values import Param, Part, Term, Update

RANK = 2


def apply(terms: tuple[Term, ...], arrays: dict[str, np.ndarray], w: np.ndarray) -> np.ndarray:
    """The terms, applied to a matrix."""
    w = w.copy()
    for term in terms:
        method, f = METHODS[term.method], factors(term, arrays)
        f["rows"] = np.array(term.rows_changed, np.int64)
        whole, part = slice(0, term.stop - term.start), w[term.start : term.stop]
        if method.prepare:
            f = method.prepare(lambda part=part, whole=whole: [(whole, part.copy())], f, term.scale)
        part[...] = method.rows(part.copy(), f, term.scale, whole)
    return w


def cut_out(param: np.ndarray, part: Part) -> np.ndarray:
    """The part's equation: tensor[rows] == param[index], transposed if it says so."""
    piece = param[tuple(i if isinstance(i, int) else slice(*i) for i in part.index)]
    return np.swapaxes(piece, -1, -2) if part.transpose else piece


def agree(param: Param, update: Update, part: Part, arrays: dict[str, np.ndarray]) -> None:
    w = normal(*param.shape)
    after = apply(update.terms, arrays, w.reshape(-1, update.cols)).reshape(param.shape)
    carried = carry(update, part, param)
    before = cut_out(w, part)
    got = apply(carried.terms, arrays, np.ascontiguousarray(before).reshape(-1, carried.cols)).reshape(before.shape)
    np.testing.assert_allclose(got, cut_out(after, part), rtol=2e-5, atol=1e-6)
    rows_before = math.prod(w.shape) // update.cols
    if update.replacement is None and part.index and isinstance(part.index[0], int):
        assert carried.first_row == part.index[0] * rows_before // w.shape[0] + _inner(part)


def _inner(part: Part) -> int:
    return part.index[1][0] if len(part.index) > 1 and not isinstance(part.index[1], int) else 0


def ranges(n: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda r: r[0] < r[1])


@given(st.data())
def test_lora_on_a_range_of_rows_and_columns_transposed_or_not(data):
    n, m = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    index = (data.draw(ranges(n)), data.draw(ranges(m)))
    param = linear(n, m)
    names = {"A": tensor("A", RANK, m), "B": tensor("B", n, RANK)}
    arrays = {"A": normal(RANK, m, seed=1), "B": normal(n, RANK, seed=2)}
    part = Part("t", param.name, index[: data.draw(st.integers(0, 2))], transpose=data.draw(st.booleans()))
    agree(param, lora.bind(target(param), names), part, arrays)


@given(st.data())
def test_experts_one_by_one_and_in_halves(data):
    e, n, m = (data.draw(st.integers(1, 4)) for _ in range(3))
    param = Param("x.experts.w", (e, n, m), "Experts")
    names = {"A": tensor("A", e * RANK, m), "B": tensor("B", n, RANK * e)}
    arrays = {"A": normal(e * RANK, m, seed=1), "B": normal(n, RANK * e, seed=2)}
    index: tuple = (data.draw(st.integers(0, e - 1)), data.draw(ranges(n)))[: data.draw(st.integers(0, 2))]
    update = expert_lora.bind(target(param, peft_version=(0, 21)), names)
    agree(param, update, Part("t", param.name, index), arrays)


@pytest.mark.parametrize("index", [(), ((1, 4),)], ids=["whole", "rows"])
@pytest.mark.parametrize("transpose", [False, True])
def test_dora_keeps_its_norms(index, transpose):
    param = linear(6, 5)
    names = {"A": tensor("A", RANK, 5), "B": tensor("B", 6, RANK), "m": tensor("m", 6)}
    arrays = {"A": normal(RANK, 5, seed=1), "B": normal(6, RANK, seed=2), "m": np.arange(1, 7, dtype=np.float32)}
    agree(param, dora.bind(target(param), names), Part("t", param.name, index, transpose=transpose), arrays)


def test_dora_on_some_columns_has_no_norm_and_is_refused():
    param = linear(6, 5)
    names = {"A": tensor("A", RANK, 5), "B": tensor("B", 6, RANK), "m": tensor("m", 6)}
    with pytest.raises(NotExpressible):
        carry(dora.bind(target(param), names), Part("t", param.name, ((0, 6), (1, 3))), param)


def test_a_range_inside_every_expert_is_not_rows_and_is_refused():
    param = Param("x.experts.w", (3, 4, 5), "Experts")
    update = Update(param.name, param.shape, 5, None, ())
    with pytest.raises(NotExpressible):
        carry(update, Part("t", param.name, ((0, 3), (0, 2))), param)


def test_a_parameter_that_is_one_piece_of_a_fused_tensor_lands_at_its_rows():
    param = linear(4, 5)
    update = lora.bind(target(param), {"A": tensor("A", RANK, 5), "B": tensor("B", 4, RANK)})
    (term,) = carry(update, Part("qkv", param.name, rows=(8, 12)), param).terms
    assert (term.start, term.stop) == (8, 12)


def test_trained_rows_stay_whole_and_are_refused_on_a_piece_of_the_table():
    param = linear(9, 4, kind="Embedding")
    update = trainable_tokens.bind(target(param, token_ids=(7, 0)), {"D": tensor("D", 2, 4)})
    agree(param, update, Part("t", param.name), {"D": normal(2, 4, seed=3)})
    with pytest.raises(NotExpressible):
        carry(update, Part("t", param.name, ((0, 5),)), param)
