"""N506: trained in full, and still the base's."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from rule_cases import BOTH, EMBED, HIDDEN, adapter, findings, only
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

KEY = f"{EMBED}.token_adapter.trainable_tokens_delta"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory, quiet_torch):
    """A base."""
    return tiny.make_base(tmp_path_factory.mktemp("still") / "base", tie=request.param)


def saved(folder, out, *, train, **settings):
    live = tiny.wrapped(AutoModelForCausalLM.from_pretrained(folder), **settings)
    if train:
        tiny.trained(live)
    live.save_pretrained(out)
    return folder, out


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens", "model.norm"]])
@pytest.mark.parametrize("train", [True, False])
def test_modules_to_save(folder, tmp_path, modules, train):
    found = findings(*saved(folder, tmp_path, train=train, modules_to_save=modules), "N506")
    assert bool(found) != train
    if found:
        assert f"{len(modules)} tensor" in found[0].found


@pytest.mark.parametrize("train", [True, False])
def test_trained_tokens(folder, tmp_path, train):
    found = findings(*saved(folder, tmp_path, train=train, trainable_token_indices=[3, 9]), "N506")
    assert bool(found) != train


def test_copies_that_peft_saves_by_itself(folder, tmp_path):
    live = tiny.trained(tiny.wrapped(AutoModelForCausalLM.from_pretrained(folder)))
    live.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any("embed_tokens.weight" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    assert not findings(folder, tmp_path, "N506")


def test_one_value_that_moved(base, tmp_path):
    norm = load_file(base / "model.safetensors")["model.norm.weight"]
    tensors = {**BOTH, "model.norm.weight": norm}
    config = {"modules_to_save": ["model.norm"]}
    assert "model.norm.weight" in only(base, adapter(tmp_path / "same", tensors, **config), "N506").where
    moved = np.nextafter(norm, 9, where=np.arange(HIDDEN) == HIDDEN - 1, out=norm.copy())
    tuned = adapter(tmp_path / "moved", {**BOTH, "model.norm.weight": moved}, **config)
    assert not findings(base, tuned, "N506")


def test_another_type_with_the_same_values(base, tmp_path):
    rows = load_file(base / "model.safetensors")[f"{EMBED}.weight"][[5, 2]]
    tensors = {**BOTH, KEY: rows.astype(np.float64)}
    assert findings(base, adapter(tmp_path / "same", tensors, trainable_token_indices=[5, 2]), "N506")
    assert not findings(base, adapter(tmp_path / "swapped", tensors, trainable_token_indices=[2, 5]), "N506")
