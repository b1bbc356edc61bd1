"""Whole tensors of the adapter."""

from __future__ import annotations

import pytest
from methods.made import linear, target, tensor

from suture.methods import replaced
from suture.methods.base import BindError


def test_a_tensor_of_the_same_shape_takes_the_bases_place():
    update = replaced.bind(target(linear(6, 5)), {"W": tensor("m.weight", 6, 5)})
    assert update.replacement is not None
    assert (update.param, update.shape, update.terms) == ("m.weight", (6, 5), ())


def test_a_vocabulary_may_grow():
    update = replaced.bind(target(linear(6, 5, kind="Embedding"), is_end=True), {"W": tensor("m.weight", 8, 5)})
    assert update.shape == (8, 5)


@pytest.mark.parametrize(("shape", "code"), [((5, 5), "T403"), ((6, 4), "M303"), ((6,), "M303")])
def test_other_shapes_are_refused(shape, code):
    with pytest.raises(BindError) as error:
        replaced.bind(target(linear(6, 5), is_end=True), {"W": tensor("m.weight", *shape)})
    assert error.value.code == code


@pytest.mark.parametrize("rows", [5, 10])
def test_only_a_vocabulary_may_grow(rows):
    """A classifier of ten labels on a base with seven would keep a bias of seven."""
    with pytest.raises(BindError) as error:
        replaced.bind(target(linear(7, 5, name="classifier.weight")), {"W": tensor("classifier.weight", rows, 5)})
    assert error.value.code == "M303"
