"""LoRA's formula, and how its factors bind to linear, transposed and convolution weights."""

from __future__ import annotations

import numpy as np
import pytest
from methods.made import blockwise, factors, linear, normal, target, tensor

from suture.methods import METHODS, lora
from suture.methods.base import BindError


@pytest.mark.parametrize(
    ("weight", "a", "b"),
    [
        (linear(6, 5), (2, 5), (6, 2)),
        (linear(5, 6, kind="Conv1D"), (2, 5), (6, 2)),
        (linear(6, 3, 4, kind="Conv1d"), (2, 3, 4), (6, 2, 1)),
        (linear(6, 3, 2, 2, kind="Conv2d"), (2, 3, 2, 2), (6, 2, 1, 1)),
    ],
    ids=["Linear", "Conv1D", "Conv1d", "Conv2d"],
)
def test_rows_are_w_plus_s_b_a(weight, a, b):
    update = lora.bind(target(weight), {"A": tensor("A", *a), "B": tensor("B", *b)})
    (term,) = update.terms
    arrays = {"A": normal(*a, seed=1), "B": normal(*b, seed=2)}
    w = normal(*weight.shape)
    delta = arrays["B"].reshape(6, 2) @ arrays["A"].reshape(2, -1)
    expected = w + 0.5 * (delta.T if weight.kind == "Conv1D" else delta.reshape(weight.shape))
    got = blockwise(METHODS[term.method], w.reshape(-1, update.cols), factors(term, arrays), term.scale, 4)
    np.testing.assert_allclose(got.reshape(weight.shape), expected, rtol=1e-6)


@pytest.mark.parametrize(("a", "b"), [((2, 4), (6, 2)), ((2, 5), (5, 2)), ((2, 5), (6, 3)), ((2,), (6, 2))])
def test_factors_that_do_not_fit_are_named(a, b):
    with pytest.raises(BindError) as error:
        lora.bind(target(linear(6, 5)), {"A": tensor("m.lora_A.weight", *a), "B": tensor("m.lora_B.weight", *b)})
    assert error.value.code == "M303"
    assert "m.weight [6, 5] (Linear)" in error.value.expected


def test_rank_must_be_the_configs():
    with pytest.raises(BindError) as error:
        lora.bind(target(linear(6, 5), rank=3), {"A": tensor("A", 2, 5), "B": tensor("B", 6, 2)})
    assert error.value.code == "M304"


def test_square_weight_of_unknown_class_is_refused_when_the_config_says_transposed():
    square = linear(6, 6, kind="Unknown")
    pair = {"A": tensor("A", 2, 6), "B": tensor("B", 6, 2)}
    assert not lora.bind(target(square), pair).terms[0].factors["A"].transpose
    with pytest.raises(BindError, match="square"):
        lora.bind(target(square, fan_in_fan_out=True), pair)


def test_unknown_class_that_only_fits_transposed_is_taken_transposed():
    update = lora.bind(target(linear(5, 6, kind="Unknown")), {"A": tensor("A", 2, 5), "B": tensor("B", 6, 2)})
    assert update.terms[0].factors["A"].tensor == "B"


def test_padding_rows_of_a_head_stay_as_they_are():
    head = linear(8, 5, name="lm_head.weight")
    update = lora.bind(target(head, is_end=True), {"A": tensor("A", 2, 5), "B": tensor("B", 6, 2)})
    assert (update.terms[0].start, update.terms[0].stop, update.shape) == (0, 6, (8, 5))


def test_fewer_rows_than_any_other_layer_are_refused():
    with pytest.raises(BindError) as error:
        lora.bind(target(linear(8, 5, name="output.weight")), {"A": tensor("A", 2, 5), "B": tensor("B", 6, 2)})
    assert error.value.code == "M303"
