"""LoRA on an embedding table."""

from __future__ import annotations

import numpy as np
import pytest
from methods.made import blockwise, factors, linear, normal, target, tensor

from suture.methods import METHODS, embedding_lora
from suture.methods.base import BindError

NAMES = {"embedding_A": tensor("A", 2, 9), "embedding_B": tensor("B", 4, 2)}


def test_rows_are_tokens():
    update = embedding_lora.bind(target(linear(9, 4, kind="Embedding")), NAMES)
    (term,) = update.terms
    arrays = {"A": normal(2, 9, seed=1), "B": normal(4, 2, seed=2)}
    w = normal(9, 4)
    got = blockwise(METHODS[term.method], w, factors(term, arrays), 0.5, 4)
    np.testing.assert_allclose(got, w + 0.5 * (arrays["B"] @ arrays["A"]).T, rtol=1e-6)


def test_more_rows_than_the_base_are_refused():
    with pytest.raises(BindError) as error:
        embedding_lora.bind(target(linear(8, 4, kind="Embedding"), is_end=True), NAMES)
    assert error.value.code == "T403"


@pytest.mark.parametrize("rows", [8, 10])
def test_a_table_of_positions_has_the_rows_of_the_base(rows):
    with pytest.raises(BindError) as error:
        embedding_lora.bind(target(linear(rows, 4, kind="Embedding", name="transformer.wpe.weight")), NAMES)
    assert error.value.code == "M303"
