"""N509: A as it was drawn."""

from __future__ import annotations

import pytest
import tiny
import torch
from rule_cases import BOTH, adapter, findings, only
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quiet_torch):
    """A base."""
    return tiny.make_base(tmp_path_factory.mktemp("frozen") / "base")


def saved(folder, out, *, frozen, dtype=torch.float32, steps=3, **settings):
    """What PEFT saves after a few steps of training, with A frozen or not."""
    torch.manual_seed(0)
    model = tiny.wrapped(AutoModelForCausalLM.from_pretrained(folder), **settings)
    for name, p in model.named_parameters():
        p.requires_grad_(p.requires_grad and not (frozen and "lora_A" in name))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    tokens = torch.randint(3, tiny.VOCAB, (2, 16))
    for _ in range(steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.to(dtype).save_pretrained(out)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_was_frozen(folder, tmp_path, dtype):
    finding = only(folder, saved(folder, tmp_path, frozen=True, dtype=dtype), "N509")
    assert finding.severity == "info"
    assert "all 6 lora_A" in finding.found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_was_trained(folder, tmp_path, dtype):
    assert not findings(folder, saved(folder, tmp_path, frozen=False, dtype=dtype), "N509")


def test_nothing_was_trained(folder, tmp_path):
    assert not findings(folder, saved(folder, tmp_path, frozen=True, steps=0), "N509")


def test_another_start(folder, tmp_path):
    assert not findings(folder, saved(folder, tmp_path, frozen=True, init_lora_weights="gaussian"), "N509")


def test_values_of_another_size(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "N509")
