"""M306: files with nothing in them."""

from __future__ import annotations

import numpy as np
from rule_cases import BOTH, EMBED, Q0, adapter, findings, only
from safetensors.numpy import load_file


def test_no_tensors(base, tmp_path):
    assert only(base, adapter(tmp_path, {}), "M306").found == "the file holds no tensors"


def test_tensors_without_values(base, tmp_path):
    tensors = {**BOTH, f"{Q0}.lora_A.weight": np.zeros((0,), np.float32)}
    assert only(base, adapter(tmp_path, tensors), "M306").found.startswith("1 of 4 tensors have no values")


def test_only_copies_of_the_base(base, tmp_path):
    copy = load_file(base / "model.safetensors")[f"{EMBED}.weight"]
    tuned = adapter(tmp_path, {f"{EMBED}.base_layer.weight": copy}, target_modules=[])
    assert "nothing in the file was trained" in only(base, tuned, "M306").found


def test_lost_names_are_another_rule(base, tmp_path):
    assert not findings(base, adapter(tmp_path, {f"lost.{name}": array for name, array in BOTH.items()}), "M306")


def test_an_adapter(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "M306")
