"""W710: the record of a merge, and the files beside it."""

from __future__ import annotations

import pytest
from model_cases import WEIGHTS, copied, edit, found, only, reweigh
from rule_cases import BOTH, adapter, llama
from safetensors.numpy import save_file

from suture import pipeline


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    root = tmp_path_factory.mktemp("merged")
    pipeline.merge(llama(root / "base"), adapter(root / "adapter", BOTH), root / "out")
    return root / "out"


@pytest.fixture
def folder(merged, tmp_path):
    return copied(merged, tmp_path / "model")


def test_a_merge_as_it_was_written(merged):
    assert not found(merged, deep=True)


def test_bytes_that_changed(folder):
    reweigh(folder, lambda t: t["model.norm.weight"].__setitem__(0, 7))
    assert not found(folder, "W710"), "nothing was read"
    finding = only(folder, "W710", deep=True)
    assert finding.severity == "error"
    assert WEIGHTS in finding.found


def test_a_file_that_is_gone(folder):
    edit(folder / "suture_receipt.json", lambda r: r["sha256"].update({"tokenizer.json": "0" * 64}))
    assert "tokenizer.json" in only(folder, "W710").found


def test_weights_that_were_added(folder):
    edit(folder / "suture_receipt.json", lambda r: r["sha256"].pop(WEIGHTS))
    assert "not of the merge" in only(folder, "W710").found


def test_another_merge_left_its_shards(folder):
    save_file({}, folder / "other.safetensors")
    assert not found(folder, "W710")


def test_files_that_may_change(folder):
    (folder / "README.md").write_text("mine")
    assert not found(folder, "W710", deep=True)


def test_a_record_without_files(folder):
    edit(folder / "suture_receipt.json", lambda r: r.update(sha256=[]))
    assert found(folder, "W710", deep=True)
