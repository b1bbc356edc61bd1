"""A207: DoRA's magnitudes against the rows of the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from rule_cases import findings, only
from transformers import AutoModelForCausalLM


def steps(model: torch.nn.Module, n: int = 10) -> None:
    """Train on one batch, at a usual learning rate."""
    torch.manual_seed(0)
    tokens = torch.randint(3, tiny.VOCAB, (2, 16))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(n):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def dora(tmp_path_factory, quiet_torch) -> tuple[Path, Path]:
    """A base, and a DoRA adapter that PEFT trained on it."""
    root = tmp_path_factory.mktemp("dora")
    base = tiny.make_base(root / "base")
    model = tiny.wrapped(AutoModelForCausalLM.from_pretrained(base), use_dora=True)
    steps(model)
    model.save_pretrained(root / "adapter")
    return base, root / "adapter"


def test_a_trained_adapter_on_its_base(dora):
    assert not findings(*dora, "A207")


def test_a_base_of_other_values(dora, tmp_path):
    base, tuned = dora
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for layer in model.model.layers:
            for module in (layer.self_attn.q_proj, layer.self_attn.v_proj, layer.mlp.down_proj):
                module.weight *= torch.linspace(0.5, 2.0, module.out_features)[:, None]
    model.save_pretrained(tmp_path)
    finding = only(tmp_path, tuned, "A207")
    assert finding.found.startswith("in 6 of 6 layers")


def test_one_layer_that_moved_far_is_no_other_base(dora, tmp_path):
    base, tuned = dora
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight *= 2
    model.save_pretrained(tmp_path)
    assert not findings(tmp_path, tuned, "A207")


def test_no_magnitudes(tmp_path, dora):
    tiny.trained(tiny.wrapped()).save_pretrained(tmp_path)
    assert not findings(dora[0], tmp_path, "A207")
