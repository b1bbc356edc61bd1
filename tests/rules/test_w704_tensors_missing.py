"""W704: parameters that no file holds."""

from __future__ import annotations

import pytest
from model_cases import copied, edit, found, only, reweigh
from transformers import AutoModelForSequenceClassification


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_tensor_that_was_filtered(base_of, tmp_path, name):
    folder = reweigh(copied(base_of("llama-tied"), tmp_path / "model"), lambda t: t.pop(name))
    finding = only(folder, "W704")
    assert finding.severity == "error"
    assert "1 of " in finding.found
    assert name in finding.found


def test_a_head_that_was_left_behind(base_of, tmp_path):
    """The config is the classifier's, the weights are the base's."""
    model = AutoModelForSequenceClassification.from_pretrained(base_of("llama-tied"), num_labels=3)
    model.save_pretrained(tmp_path)
    assert not found(tmp_path, "W704")
    reweigh(tmp_path, lambda t: t.pop("score.weight"))
    assert "score.weight" in only(tmp_path, "W704").found


def test_tied_ends_are_one_tensor(base_of):
    for name in ("llama-tied", "t5", "bart", "bert"):
        assert not found(base_of(name), "W704")


def test_a_class_that_is_not_known(base_of, tmp_path):
    folder = reweigh(copied(base_of("llama-tied"), tmp_path / "model"), lambda t: t.pop("model.norm.weight"))
    edit(folder / "config.json", lambda c: c.update(architectures=["OurModel"], model_type="ours"))
    assert not found(folder, "W704")
