"""L905: a base that trains."""

from __future__ import annotations

from live_cases import found
from tiny import wrapped


def test_a_norm_that_was_unfrozen():
    model = wrapped()
    model.get_base_model().model.norm.weight.requires_grad_(True)
    (finding,) = found(model, "L905")
    assert finding.found.startswith("1 tensors of the base train")


def test_what_the_adapter_asks_for_may_train():
    assert not found(wrapped(modules_to_save=["lm_head"]), "L905")
