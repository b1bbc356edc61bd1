import os
from pathlib import Path

import numpy as np
import pytest
from corpus.folders import (
    INDEX,
    SHARDS,
    TENSORS,
    adapter,
    sharded_model,
    single_model,
    write_index,
    write_json,
    write_text,
)
from corpus.indexes import FIRST, INDEXES, SECOND

from suture.errors import FormatError, InputError, PickleRefused, UsageError
from suture.formats import TensorReader, read_checkpoint


def values_of(checkpoint):
    with TensorReader(checkpoint.folder) as reader:
        return {name: reader.array(info) for name, info in checkpoint.tensors.items()}


def assert_complete(checkpoint):
    values = values_of(checkpoint)
    assert values.keys() == TENSORS.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, TENSORS[name])


def test_a_single_file(tmp_path):
    checkpoint = read_checkpoint(single_model(tmp_path))
    assert_complete(checkpoint)
    assert checkpoint.config["model_type"] == "llama"
    (shard,) = checkpoint.shards
    assert (shard.name, shard.metadata) == ("model.safetensors", {"format": "pt"})
    assert shard.n_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert (checkpoint.index_file, checkpoint.index_metadata) == (None, {})


def test_a_folder_may_be_named_as_text(tmp_path):
    assert read_checkpoint(str(single_model(tmp_path))).folder == tmp_path


def test_shards_with_an_index(tmp_path):
    checkpoint = read_checkpoint(sharded_model(tmp_path))
    assert_complete(checkpoint)
    assert [s.name for s in checkpoint.shards] == sorted(SHARDS)
    assert (checkpoint.index_file, checkpoint.index_metadata) == (INDEX, {"total_size": 176})
    assert {t.name: t.file for t in checkpoint.tensors.values()} == {n: f for f, ns in SHARDS.items() for n in ns}


def test_an_index_may_name_the_single_file(tmp_path):
    write_index(single_model(tmp_path), dict.fromkeys(TENSORS, "model.safetensors"))
    assert_complete(read_checkpoint(tmp_path))


@pytest.mark.parametrize("first", [0, 1])
def test_shards_without_an_index_counted_from_one_or_zero(tmp_path, first):
    names = [f"model-{first + i:05d}-of-00002.safetensors" for i in range(2)]
    checkpoint = read_checkpoint(sharded_model(tmp_path, dict(zip(names, SHARDS.values(), strict=True)), index=False))
    assert_complete(checkpoint)
    assert checkpoint.index_file is None


@pytest.mark.parametrize("name", ["pytorch_model.safetensors", "weights.safetensors", "model.fp32.safetensors"])
def test_a_single_file_of_another_name(tmp_path, name):
    (single_model(tmp_path) / "model.safetensors").rename(tmp_path / name)
    assert_complete(read_checkpoint(tmp_path))


def test_files_beside_the_model_are_no_part_of_it(tmp_path):
    adapter(single_model(tmp_path))
    for name in ("consolidated.safetensors", "other.safetensors"):
        (tmp_path / name).write_bytes(b"not read")
    assert_complete(read_checkpoint(tmp_path))


def test_files_beside_shards_without_an_index_are_no_part_of_the_model(tmp_path):
    sharded_model(tmp_path, index=False)
    (tmp_path / "consolidated.safetensors").write_bytes(b"not read")
    assert_complete(read_checkpoint(tmp_path))


def test_an_adapter_in_the_folder_is_not_taken_for_a_model(tmp_path):
    adapter(tmp_path)
    write_json(tmp_path / "config.json", {})
    with pytest.raises(FormatError, match="there are no weights"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", INDEXES)
def test_broken_sets_of_shards(name, tmp_path):
    break_, message = INDEXES[name]
    break_(sharded_model(tmp_path))
    with pytest.raises(FormatError) as caught:
        read_checkpoint(tmp_path)
    assert message in str(caught.value).replace(str(tmp_path), "")
    assert str(tmp_path) in caught.value.where
    assert len(str(caught.value)) < 1500


def test_a_shard_left_beside_the_single_file_is_ambiguous(tmp_path):
    sharded_model(single_model(tmp_path), index=False)
    with pytest.raises(FormatError, match=f"two sets of weights: model.safetensors beside {FIRST}"):
        read_checkpoint(tmp_path)


def test_a_damaged_shard_is_named(tmp_path):
    path = sharded_model(tmp_path) / SECOND
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=rf"{SECOND}: the file is cut"):
        read_checkpoint(tmp_path)


def test_an_index_of_very_many_absent_files_is_refused_quickly(tmp_path):
    write_index(sharded_model(tmp_path), {f"t{i}": f"model-{i}.safetensors" for i in range(20_000)})
    with pytest.raises(FormatError, match=r"missing: .* and 19995 more"):
        read_checkpoint(tmp_path)


def test_the_folder_must_have_a_config(tmp_path):
    (single_model(tmp_path) / "config.json").unlink()
    with pytest.raises(FormatError, match=r"there is no config\.json"):
        read_checkpoint(tmp_path)


def test_an_adapter_given_as_the_base_is_recognised(tmp_path):
    with pytest.raises(FormatError, match="this is an adapter"):
        read_checkpoint(adapter(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}'])
def test_a_malformed_config_is_named(tmp_path, text):
    (single_model(tmp_path) / "config.json").write_text(text)
    with pytest.raises(FormatError, match=r"config\.json"):
        read_checkpoint(tmp_path)


def test_without_weights_the_error_says_what_is_there_instead(tmp_path):
    write_json(tmp_path / "config.json", {})
    (tmp_path / "model.Q4_K_M.gguf").touch()
    with pytest.raises(FormatError, match=r"there are no weights; there is model\.Q4_K_M\.gguf"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "pytorch_model-00001-of-00001.bin"])
def test_pickled_weights_are_refused_unopened(tmp_path, name):
    write_json(tmp_path / "config.json", {})
    (tmp_path / name).write_bytes(b"not even a pickle")
    with pytest.raises(PickleRefused) as caught:
        read_checkpoint(tmp_path)
    assert name in caught.value.found
    assert caught.value.do


def test_safetensors_are_preferred_to_a_pickle(tmp_path):
    (single_model(tmp_path) / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert_complete(read_checkpoint(tmp_path, allow_pickle=True))


class TestWithoutWeights:
    def test_the_config_alone_is_enough(self, tmp_path):
        write_json(tmp_path / "config.json", {"model_type": "llama"})
        checkpoint = read_checkpoint(tmp_path, need_weights=False)
        assert (checkpoint.tensors, checkpoint.shards) == ({}, ())
        assert checkpoint.config == {"model_type": "llama"}

    def test_so_are_a_config_and_an_index(self, tmp_path):
        sharded_model(tmp_path)
        for file in SHARDS:
            (tmp_path / file).unlink()
        assert read_checkpoint(tmp_path, need_weights=False).tensors == {}
        with pytest.raises(FormatError, match="there are no weights") as caught:
            read_checkpoint(tmp_path)
        assert INDEX in caught.value.do

    def test_a_pickle_is_left_alone(self, tmp_path):
        write_json(tmp_path / "config.json", {})
        (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
        assert read_checkpoint(tmp_path, need_weights=False).tensors == {}

    def test_headers_that_are_there_are_read(self, tmp_path):
        assert read_checkpoint(single_model(tmp_path), need_weights=False).tensors.keys() == TENSORS.keys()


class TestHubCache:
    """Snapshots of the Hub's cache are symlinks into a store of blobs beside them."""

    @staticmethod
    def snapshot(cache: Path, *, shared: bool = False) -> Path:
        repo = cache / "models--org--name"
        snapshot = single_model(repo / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
        (repo / "blobs").mkdir()
        for path in sorted(snapshot.iterdir()):
            blob = repo / "blobs" / f"blob-{path.name}"
            if shared:
                (cache / "blobs" / "ab").mkdir(parents=True, exist_ok=True)
                path.rename(cache / "blobs" / "ab" / path.name)
                blob.symlink_to(f"../../blobs/ab/{path.name}")
            else:
                path.rename(blob)
            path.symlink_to(f"../../blobs/blob-{path.name}")
        return snapshot

    @pytest.mark.parametrize("shared", [False, True])
    def test_links_into_the_store_work(self, tmp_path, shared):
        checkpoint = read_checkpoint(self.snapshot(tmp_path, shared=shared))
        assert_complete(checkpoint)
        assert checkpoint.side_files == ("config.json",)

    def test_also_when_the_snapshot_itself_is_reached_by_a_link(self, tmp_path):
        (tmp_path / "mine").symlink_to(self.snapshot(tmp_path))
        assert_complete(read_checkpoint(tmp_path / "mine"))

    def test_a_blob_that_was_not_downloaded_is_an_error(self, tmp_path):
        snapshot = self.snapshot(tmp_path)
        (snapshot / "model.safetensors").resolve().unlink()
        with pytest.raises(InputError, match=r"model\.safetensors: the file cannot be opened"):
            read_checkpoint(snapshot)

    def test_a_link_that_leaves_the_store_is_refused(self, tmp_path):
        snapshot = self.snapshot(tmp_path)
        blob = (snapshot / "model.safetensors").resolve()
        blob.rename(tmp_path / "elsewhere")
        blob.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FormatError, match="leaves its folder"):
            read_checkpoint(snapshot)

    def test_a_store_that_is_itself_a_link_is_refused(self, tmp_path):
        snapshot = self.snapshot(tmp_path)
        store = snapshot.parent.parent / "blobs"
        store.rename(tmp_path / "elsewhere")
        store.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FormatError, match="leaves its folder"):
            read_checkpoint(snapshot)

    def test_only_a_snapshot_has_a_store(self, tmp_path):
        folder = single_model(tmp_path / "models--org--name" / "folders" / "abc")
        blobs = tmp_path / "models--org--name" / "blobs"
        blobs.mkdir()
        (folder / "model.safetensors").rename(blobs / "b")
        (folder / "model.safetensors").symlink_to("../../blobs/b")
        with pytest.raises(FormatError, match="leaves its folder"):
            read_checkpoint(folder)


def test_links_inside_the_folder_work(tmp_path):
    (single_model(tmp_path) / "model.safetensors").rename(tmp_path / "real.safetensors")
    (tmp_path / "model.safetensors").symlink_to("real.safetensors")
    assert_complete(read_checkpoint(tmp_path))


def test_the_folder_itself_may_be_a_link(tmp_path):
    single_model(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    assert_complete(read_checkpoint(tmp_path / "link"))


def test_a_revision_of_a_folder_makes_no_sense(tmp_path):
    with pytest.raises(UsageError, match="'main' was given for a folder"):
        read_checkpoint(single_model(tmp_path), revision="main")


def test_side_files_are_all_that_travels_with_the_model(tmp_path):
    sharded_model(tmp_path)
    write_text(tmp_path, "tokenizer.json", "modeling_x.py", "README.md", "LICENSE", "1_Pooling/config.json")
    assert read_checkpoint(tmp_path).side_files == (
        "1_Pooling/config.json", "LICENSE", "README.md", "config.json", "modeling_x.py", "tokenizer.json",
    )  # fmt: skip


def test_reading_a_checkpoint_imports_nothing_heavy(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from suture.formats import read_checkpoint; read_checkpoint(sys.argv[1]);"
        "heavy = {'torch', 'transformers', 'peft', 'safetensors', 'huggingface_hub'} & sys.modules.keys();"
        "assert not heavy, heavy"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(single_model(tmp_path))], check=True, env=env)
