"""W708: types of matrices, and the config's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_cases import copied, edit, found, only, reweigh
from tiny import make_model


@pytest.fixture
def folder(base_of, tmp_path):
    return copied(base_of("mistral"), tmp_path / "model")


def test_a_merge_in_float32(tmp_path):
    """The config says the base's type, the files are of double size."""
    make_model().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda c: c.update(dtype="bfloat16"))
    finding = only(tmp_path, "W708")
    assert (finding.severity, finding.where) == ("warning", "config.json: dtype")
    assert "2 times the size" in finding.found


def test_the_older_name_of_the_field(folder):
    edit(folder / "config.json", lambda c: c.update(torch_dtype=c.pop("dtype")))
    assert not found(folder, "W708")
    edit(folder / "config.json", lambda c: c.update(torch_dtype="float16"))
    assert only(folder, "W708").where == "config.json: torch_dtype"


def test_a_head_of_another_type(tmp_path):
    model = make_model(tie=False).to(torch.bfloat16)
    model.lm_head.to(torch.float32)
    model.save_pretrained(tmp_path)
    finding = only(tmp_path, "W708")
    assert finding.severity == "warning"
    assert "lm_head.weight" in finding.where


def test_routers_in_float32(tmp_path):
    model = make_model(kind="moe", tie=False).to(torch.bfloat16)
    for layer in model.model.layers:
        layer.mlp.gate.to(torch.float32)
    model.save_pretrained(tmp_path)
    assert [f.severity for f in found(tmp_path, "W708")] == ["info"]


def test_norms_in_float32(folder):
    reweigh(folder, lambda t: t.update({n: a.astype(np.float64) for n, a in t.items() if a.ndim == 1}))
    assert not found(folder, "W708")
