"""R805: parts of several processes."""

from __future__ import annotations

import numpy as np
import pytest
from model_cases import reweigh
from run_cases import WEIGHTS, copied, found, only


@pytest.fixture
def folder(trained_run, tmp_path):
    return copied(trained_run / "checkpoint-4", tmp_path / "checkpoint-4")


@pytest.mark.parametrize("name", ["global_step4", "pytorch_model_fsdp_0"])
def test_folders_and_no_adapter(folder, name):
    for path in folder.glob("adapter_*"):
        path.unlink()
    (folder / name).mkdir()
    finding = only(folder, "R805")
    assert (finding.severity, finding.where) == ("error", f"{name}/")


def test_a_file_for_each_process(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model_rank_0.safetensors")
    (folder / "adapter_config.json").unlink()
    assert "rank_0" in only(folder, "R805").where


def test_an_adapter_without_values(folder):
    def empty(tensors):
        for name in list(tensors)[:3]:
            tensors[name] = np.zeros((0,), np.float32)

    finding = only(reweigh(folder, empty, WEIGHTS), "R805")
    assert "3 of " in finding.found
    assert not found(folder, "R807"), "one defect, one rule"


def test_an_adapter_without_tensors(folder):
    assert only(reweigh(folder, dict.clear, WEIGHTS), "R805").where == WEIGHTS


def test_a_sharded_optimiser_beside_a_whole_adapter(folder):
    (folder / "global_step4").mkdir()
    assert not found(folder, "R805")
