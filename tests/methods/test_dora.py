"""DoRA: rows keep the adapter's length."""

from __future__ import annotations

import numpy as np
import pytest
from methods.made import blockwise, factors, linear, normal, target, tensor

from suture.methods import METHODS, dora
from suture.methods.base import BindError


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_every_output_has_the_length_m(kind):
    shape = (6, 5) if kind == "Linear" else (5, 6)
    names = {"A": tensor("A", 2, 5), "B": tensor("B", 6, 2), "m": tensor("m", 6)}
    update = dora.bind(target(linear(*shape, kind=kind)), names)
    (term,) = update.terms
    arrays = {"A": normal(2, 5, seed=1), "B": normal(6, 2, seed=2), "m": np.arange(1, 7, dtype=np.float32)}
    w = normal(*shape)
    got = blockwise(METHODS[term.method], w, factors(term, arrays), 0.5, 2)
    out_first = got if kind == "Linear" else got.T
    np.testing.assert_allclose(np.linalg.norm(out_first, axis=1), arrays["m"], rtol=1e-5)
    v = (w if kind == "Linear" else w.T) + 0.5 * arrays["B"] @ arrays["A"]
    np.testing.assert_allclose(out_first, arrays["m"][:, None] * v / np.linalg.norm(v, axis=1)[:, None], rtol=1e-5)


def test_magnitude_of_another_length_is_refused():
    with pytest.raises(BindError) as error:
        dora.bind(target(linear(6, 5)), {"A": tensor("A", 2, 5), "B": tensor("B", 6, 2), "m": tensor("m", 5)})
    assert error.value.code == "M303"
