"""X602: weights beside the adapter."""

from __future__ import annotations

import shutil

import pytest
from rule_cases import BOTH, adapter, findings, llama, only

from suture.pipeline import Reading, load_case
from suture.rules.x602_weights_left_behind import RULE
from suture.values import Options


@pytest.mark.parametrize("name", ["non_lora_state_dict.bin", "value_head.safetensors", "new_embeddings.safetensors"])
def test_a_file_that_nobody_merges(base, tmp_path, name):
    tuned = adapter(tmp_path, BOTH)
    (tuned / name).write_bytes(b"weights")
    assert name in only(base, tuned, "X602").where


def test_the_rule_opens_no_folder(tmp_path):
    base, tuned = llama(tmp_path / "base"), adapter(tmp_path / "adapter", BOTH)
    (tuned / "value_head.safetensors").write_text("{}")
    case = load_case(base, tuned, Options(), Reading())
    shutil.rmtree(tmp_path)
    assert list(RULE.pair(case))


def test_files_of_the_trainer(base, tmp_path):
    tuned = adapter(tmp_path, BOTH)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "README.md"):
        (tuned / name).write_bytes(b"state")
    assert not findings(base, tuned, "X602")


def test_base_and_adapter_in_one_folder(tmp_path):
    both = adapter(llama(tmp_path / "both"), BOTH)
    assert not findings(both, both, "X602")
