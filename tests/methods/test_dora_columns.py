"""DoRA on an embedding: columns keep the adapter's length, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from methods.made import blockwise, factors, linear, normal, target, tensor

from suture.methods import METHODS, dora_columns
from suture.methods.base import BindError

NAMES = {"embedding_A": tensor("A", 2, 9), "embedding_B": tensor("B", 4, 2), "m": tensor("m", 4)}


@pytest.mark.parametrize("size", [2, 4, 9])
def test_every_column_has_the_length_m(size):
    update = dora_columns.bind(target(linear(9, 4, kind="Embedding")), NAMES)
    (term,) = update.terms
    arrays = {"A": normal(2, 9, seed=1), "B": normal(4, 2, seed=2), "m": np.arange(1, 5, dtype=np.float32)}
    w = normal(9, 4)
    got = blockwise(METHODS[term.method], w, factors(term, arrays), 0.5, size)
    v = w + 0.5 * (arrays["B"] @ arrays["A"]).T
    np.testing.assert_allclose(got, v * arrays["m"] / np.linalg.norm(v, axis=0), rtol=1e-5)


def test_padded_vocabulary_is_refused_because_the_norm_spans_all_rows():
    with pytest.raises(BindError):
        dora_columns.bind(target(linear(10, 4, kind="Embedding")), NAMES)
