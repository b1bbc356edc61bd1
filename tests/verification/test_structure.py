"""Each fault of a folder's structure is found by the check that is named for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from verification.made import INDEX, NORM, TABLE, Made, make, shard, write_json, write_tensors

from suture.verification import reading, structure


def faults(made: Made) -> dict[str, str]:
    """Details of the failed checks, by name."""
    stored = reading.read_folder(made.folder, (f.name for f in made.plan.files))
    sides = frozenset(s.name for s in made.plan.side_files)
    checks = structure.check(made.folder, stored, sides)
    checks += structure.check_planned(made.plan, made.checkpoint, made.adapter, made.folder)
    return {c.name: c.detail for c in checks if not c.ok}


def index_with(made: Made, change) -> None:
    index = json.loads((made.folder / INDEX).read_text())
    change(index)
    write_json(made.folder / INDEX, index)


def test_a_right_folder_has_no_fault(tmp_path):
    assert faults(make(tmp_path)) == {}


class TestIndex:
    def test_total_size(self, tmp_path):
        made = make(tmp_path)
        index_with(made, lambda i: i["metadata"].update(total_size=6))
        found = faults(made)
        assert "metadata.total_size is 6, the tensors have" in found["index"]
        assert INDEX in found["generated files"]

    def test_without_total_size(self, tmp_path):
        made = make(tmp_path)
        index_with(made, lambda i: i.pop("metadata"))
        assert "index" not in faults(made)

    def test_a_tensor_in_another_file(self, tmp_path):
        made = make(tmp_path)
        index_with(made, lambda i: i["weight_map"].update({NORM: shard(1)}))
        assert f"{NORM} is not in {shard(1)}" in faults(made)["index"]

    def test_a_tensor_too_many_and_one_too_few(self, tmp_path):
        made = make(tmp_path)
        index_with(made, lambda i: (i["weight_map"].pop(NORM), i["weight_map"].update(ghost=shard(1))))
        detail = faults(made)["index"]
        assert f"ghost is not in {shard(1)}" in detail
        assert f"{NORM} ({shard(2)}) is not in the index" in detail

    @pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}'])
    def test_no_index_at_all(self, tmp_path, text):
        made = make(tmp_path)
        (made.folder / INDEX).write_text(text)
        assert f"{INDEX}: not an index" in faults(made)["weight files"]

    @pytest.mark.parametrize("name", ["../x.safetensors", "a/b.safetensors", "x.bin"])
    def test_a_file_outside_the_folder(self, tmp_path, name):
        made = make(tmp_path)
        index_with(made, lambda i: i["weight_map"].update({NORM: name}))
        assert "is no file of this folder" in faults(made)["weight files"]


class TestShards:
    def test_a_shard_that_the_index_does_not_name(self, tmp_path):
        made = make(tmp_path)
        write_tensors(made.folder / "model-00003-of-00003.safetensors", {})
        assert "model-00003-of-00003.safetensors holds weights" in faults(made)["no other weights"]

    def test_a_whole_model_beside_the_shards(self, tmp_path):
        made = make(tmp_path)
        (made.folder / shard(1)).rename(made.folder / "model.safetensors")
        found = faults(made)
        assert INDEX in found["no other weights"]
        assert shard(2) in found["no other weights"]
        assert f"{shard(1)} is missing" in found["weight files as planned"]

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "tf_model.h5", "flax_model.msgpack"])
    def test_weights_of_other_frameworks(self, tmp_path, name):
        made = make(tmp_path)
        (made.folder / name).write_bytes(b"")
        assert name in faults(made)["no other weights"]

    @pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "merges.txt", "model.py"])
    def test_other_files_are_nobodys_business(self, tmp_path, name):
        made = make(tmp_path)
        (made.folder / name).write_bytes(b"")
        assert faults(made) == {}

    def test_a_number_is_missing(self, tmp_path):
        made = make(tmp_path)
        (made.folder / shard(2)).unlink()
        index_with(made, lambda i: [i["weight_map"].pop(n) for n, f in list(i["weight_map"].items()) if f == shard(2)])
        assert "shards [1] of [2]" in faults(made)["shard names"]

    def test_a_shard_is_missing(self, tmp_path):
        made = make(tmp_path)
        (made.folder / shard(2)).unlink()
        found = faults(made)
        assert shard(2) in found["weight files"]
        assert f"{shard(2)} is missing" in found["weight files as planned"]

    def test_a_cut_shard(self, tmp_path):
        made = make(tmp_path)
        path = made.folder / shard(2)
        path.write_bytes(path.read_bytes()[:-1])
        found = faults(made)
        assert "the tensors end at byte" in found["weight files"]
        assert "bytes, planned" in found["weight files as planned"]

    def test_a_tensor_in_two_shards(self, tmp_path):
        made = make(tmp_path)
        write_tensors(made.folder / shard(1), {NORM: ("U8", np.zeros(4, np.uint8))})
        assert f"{NORM} is also in {shard(1)}" in faults(made)["weight files"]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_the_weights(tmp_path, name):
    made = make(tmp_path)
    (made.folder / name).write_text("{}")
    assert f"{name}: a loader would apply the adapter once more" in faults(made)["no other weights"]


def test_another_header(tmp_path):
    made = make(tmp_path)
    path = made.folder / shard(2)
    path.write_bytes(path.read_bytes().replace(TABLE.encode(), TABLE.upper().encode()))
    assert "another header than planned" in faults(made)["weight files as planned"]


def test_a_broken_side_file(tmp_path):
    made = make(tmp_path)
    (made.folder / "tokenizer_config.json").write_text("{")
    found = faults(made)
    assert "tokenizer_config.json is not the base's" in found["copied files"]
    assert "tokenizer_config.json: " in found["JSON files"]
