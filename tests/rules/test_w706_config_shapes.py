"""W706: numbers of the config, and shapes of tensors."""

from __future__ import annotations

import pytest
from model_cases import copied, edit, found, only, reweigh
from rule_cases import random
from tiny import make_model


@pytest.fixture
def folder(base_of, tmp_path):
    return copied(base_of("mistral"), tmp_path / "model")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("vocab_size", 104, "[96, 32]"), ("intermediate_size", 56, "mlp"), ("hidden_size", 64, "shape")],
)
def test_a_width(folder, field, value, words):
    edit(folder / "config.json", lambda c: c.update({field: value}))
    finding = only(folder, "W706")
    assert finding.severity == "error"
    assert words in finding.found


def test_fewer_layers_than_the_files(folder):
    edit(folder / "config.json", lambda c: c.update(num_hidden_layers=1))
    finding = only(folder, "W706")
    assert finding.where == "config.json: num_hidden_layers"
    assert "layers.1" in finding.found
    assert not found(folder, "W705"), "one defect, one rule"


def test_more_layers_than_the_files(folder):
    edit(folder / "config.json", lambda c: c.update(num_hidden_layers=3))
    assert "layers.2" in only(folder, "W706").found
    edit(folder / "config.json", lambda c: c.update(num_hidden_layers=5))
    assert "layers.2 to 4" in only(folder, "W706").found
    assert not found(folder, "W704"), "one defect, one rule"


def test_a_layer_of_another_make(folder):
    """Layers that predict several tokens stand after the last one and have tensors of their own."""
    reweigh(folder, lambda t: t.update({"model.layers.2.eh_proj.weight": random(32, 64)}))
    assert not found(folder, "W706")


def test_the_size_of_the_vocabulary_at_one_level(base_of, tmp_path):
    folder = copied(base_of("gemma3-image"), tmp_path / "model")
    assert not found(folder, "W706")
    edit(folder / "config.json", lambda c: c.update(vocab_size=90))
    assert [f.severity for f in found(folder, "W706")] == ["info"]


def test_a_resized_model(tmp_path):
    model = make_model()
    model.resize_token_embeddings(101, mean_resizing=False)
    model.save_pretrained(tmp_path)
    assert not found(tmp_path, "W706")
    edit(tmp_path / "config.json", lambda c: c.update(vocab_size=98))
    assert found(tmp_path, "W706")


def test_an_expert_less(base_of, tmp_path):
    folder = copied(base_of("qwen3-moe"), tmp_path / "model")
    reweigh(folder, lambda t: t.pop("model.layers.0.mlp.experts.2.up_proj.weight"))
    assert "experts" in only(folder, "W706").found
    assert not found(folder, "W704"), "one defect, one rule"
