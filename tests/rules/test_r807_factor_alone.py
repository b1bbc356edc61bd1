"""R807: factors without a partner."""

from __future__ import annotations

import pytest
from model_cases import reweigh
from run_cases import WEIGHTS, copied, found, only


@pytest.fixture
def folder(trained_run, tmp_path):
    return copied(trained_run / "checkpoint-4", tmp_path / "checkpoint-4")


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_one_half(folder, half):
    def drop(tensors):
        tensors.pop(min(name for name in tensors if half in name))

    finding = only(reweigh(folder, drop, WEIGHTS), "R807")
    assert finding.severity == "error"
    assert "1 factors" in finding.found


def test_two_ranks(folder):
    def cut(tensors):
        name = min(name for name in tensors if "lora_A" in name)
        tensors[name] = tensors[name][:2].copy()

    assert "two ranks" in only(reweigh(folder, cut, WEIGHTS), "R807").found


def test_other_tensors_have_no_partner(folder):
    def add(tensors):
        tensors["base_model.model.lm_head.weight"] = next(iter(tensors.values())).copy()

    assert not found(reweigh(folder, add, WEIGHTS), "R807")
