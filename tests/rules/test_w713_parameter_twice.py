"""W713: two tensors for one parameter."""

from __future__ import annotations

import numpy as np
import pytest
from model_cases import copied, found, only, reweigh


def test_an_older_name_beside_the_newer(base_of, tmp_path):
    """Gemma 3 has stood in files as language_model.model. and as model.language_model."""
    folder = copied(base_of("gemma3-image"), tmp_path / "model")

    def add(tensors):
        name = next(n for n in tensors if n.endswith("language_model.model.norm.weight"))
        tensors["model.language_model.norm.weight"] = tensors[name].copy()

    finding = only(reweigh(folder, add), "W713")
    assert finding.severity == "error"
    assert "norm.weight" in finding.where


def test_fused_experts_beside_single_ones(base_of, tmp_path):
    folder = copied(base_of("qwen3-moe"), tmp_path / "model")

    def add(tensors):
        tensors["model.layers.0.mlp.experts.down_proj"] = np.zeros((4, 32, 24), np.float32)

    finding = only(reweigh(folder, add), "W713")
    assert "several kinds" in finding.found


@pytest.mark.parametrize("name", ["gemma3-image", "qwen3-moe", "t5"])
def test_one_tensor_each(base_of, name):
    assert not found(base_of(name), "W713")
