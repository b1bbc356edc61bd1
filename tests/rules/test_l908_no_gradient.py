"""L908: layers that the loss goes around."""

from __future__ import annotations

import torch.nn.functional as F
from live_cases import found
from tiny import wrapped


def test_a_projection_that_is_read_directly():
    model = wrapped()
    layer = model.get_base_model().model.layers[0].mlp
    base = layer.down_proj.base_layer.weight
    layer.forward = lambda x: F.linear(layer.act_fn(layer.gate_proj(x)) * layer.up_proj(x), base)  # as a fused kernel
    (finding,) = found(model, "L908")
    assert "2 tensors" in finding.found


def test_a_forward_pass_that_calls_every_layer():
    assert not found(wrapped(modules_to_save=["lm_head"]), "L908")
