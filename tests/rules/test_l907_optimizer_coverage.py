"""L907: an optimiser that holds something else than what trains."""

from __future__ import annotations

import torch
from live_cases import found
from tiny import wrapped


def test_an_optimiser_that_forgot_a_half():
    model = wrapped()
    some = [p for n, p in model.named_parameters() if "lora_A" in n]
    (finding,) = found(model, "L907", optimizer=torch.optim.AdamW(some))
    assert "not in the optimiser" in finding.found


def test_an_optimiser_with_a_rate_of_zero():
    model = wrapped()
    params = [p for p in model.parameters() if p.requires_grad]
    (finding,) = found(model, "L907", optimizer=torch.optim.AdamW(params, lr=0.0))
    assert "learning rate of zero" in finding.found


def test_an_optimiser_that_holds_all():
    model = wrapped()
    assert not found(model, "L907", optimizer=torch.optim.AdamW(p for p in model.parameters() if p.requires_grad))
    assert not found(model, "L907"), "none was passed"
