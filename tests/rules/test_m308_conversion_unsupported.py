"""M308: updates that no tensor on disk can take."""

from __future__ import annotations

import json

from rule_cases import BOTH, Q0, Q1, adapter, findings, only, pair, save
from safetensors.numpy import load_file

MISSING = f"{Q1}.weight"


def without_tensor(base, folder):
    """The base with a layer that its class has and its file has not."""
    tensors = load_file(base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    return save(folder, config, {n: t for n, t in tensors.items() if n != MISSING}, "model")


def test_an_update_of_a_tensor_that_is_not_there(base, tmp_path):
    finding = only(without_tensor(base, tmp_path / "base"), adapter(tmp_path / "adapter", BOTH), "M308")
    assert finding.where == MISSING


def test_updates_of_other_tensors(base, tmp_path):
    tuned = adapter(tmp_path / "adapter", pair(Q0), target_modules=["layers.0.self_attn.q_proj"])
    assert not findings(without_tensor(base, tmp_path / "base"), tuned, "M308")
