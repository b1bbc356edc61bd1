"""The bias of LoRA's second factor."""

from __future__ import annotations

import numpy as np
import pytest
from methods.made import blockwise, factors, linear, normal, target, tensor

from suture.methods import METHODS, lora_bias
from suture.methods.base import BindError


def test_the_bias_grows_by_the_scaled_vector():
    update = lora_bias.bind(target(linear(6, 5), bias=linear(6, name="m.bias", kind="Linear")), {"b": tensor("b", 6)})
    (term,) = update.terms
    arrays = {"b": normal(6, seed=1)}
    base = normal(6)
    got = blockwise(METHODS["lora_bias"], base[:, None], factors(term, arrays), term.scale, 4)
    np.testing.assert_allclose(got[:, 0], base + 0.5 * arrays["b"], rtol=1e-6)
    assert update.param == "m.bias"


def test_a_layer_without_bias_cannot_hold_it():
    with pytest.raises(BindError, match="without bias"):
        lora_bias.bind(target(linear(6, 5)), {"b": tensor("b", 6)})
