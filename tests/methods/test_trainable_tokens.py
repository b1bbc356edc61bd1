"""Trained tokens: whole rows, not differences."""

from __future__ import annotations

import numpy as np
import pytest
from methods.made import blockwise, factors, linear, normal, target, tensor

from suture.methods import METHODS, trainable_tokens
from suture.methods.base import BindError

TABLE = linear(9, 4, kind="Embedding", name="embed.weight")


@pytest.mark.parametrize("size", [2, 9])
def test_named_rows_are_replaced_and_no_others(size):
    update = trainable_tokens.bind(target(TABLE, token_ids=(7, 0, 3)), {"D": tensor("D", 3, 4)})
    (term,) = update.terms
    rows = normal(3, 4, seed=1)
    w = normal(9, 4)
    f = {**factors(term, {"D": rows}), "rows": np.array(term.rows_changed)}
    got = blockwise(METHODS["trainable_tokens"], w, f, term.scale, size)
    expected = w.copy()
    expected[[7, 0, 3]] = rows
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("ids", "code"), [((1, 2), "M305"), ((1, 1, 2), "M305"), ((1, 2, 9), "T403"), ((1, 2, -1), "T403")]
)
def test_wrong_ids_are_refused(ids, code):
    with pytest.raises(BindError) as error:
        trainable_tokens.bind(target(TABLE, token_ids=ids), {"D": tensor("D", 3, 4)})
    assert error.value.code == code
