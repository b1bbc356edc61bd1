"""W703: weights that are not what is loaded."""

from __future__ import annotations

import pytest
from model_cases import INDEX, WEIGHTS, copied, found, only
from safetensors.numpy import save_file
from tiny import make_model

from suture.model_folder import read_model_folder


def test_a_second_save_into_the_folder_of_the_first(tmp_path):
    """Transformers deletes shards of an older save, but not the single file beside an index of another tool's."""
    make_model().save_pretrained(tmp_path / "one")
    make_model().save_pretrained(tmp_path / "two", max_shard_size="40KB")
    for path in (tmp_path / "two").glob("model*"):
        path.rename(tmp_path / "one" / path.name)
    finding = only(tmp_path / "one", "W703")
    assert (finding.severity, finding.where) == ("error", WEIGHTS)
    assert read_model_folder(tmp_path / "one").weights == (WEIGHTS,)


def test_shards_of_another_numbering(base_of, tmp_path):
    folder = copied(base_of("llama"), tmp_path / "model")
    (folder / "model-00001-of-00009.safetensors").write_bytes(
        (folder / "model-00001-of-00005.safetensors").read_bytes()
    )
    finding = only(folder, "W703")
    assert (finding.severity, finding.where) == ("warning", "model-00001-of-00009.safetensors")
    assert not found(folder, "W702")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_beside(base_of, tmp_path, name):
    folder = copied(base_of("llama-tied"), tmp_path / "model")
    (folder / name).write_bytes(b"PK")
    assert only(folder, "W703").severity == "warning"


def test_an_index_of_shards_that_are_gone(base_of, tmp_path):
    folder = copied(base_of("llama-tied"), tmp_path / "model")
    (folder / INDEX).write_bytes((base_of("llama") / INDEX).read_bytes())
    assert INDEX in only(folder, "W703").found
    assert not found(folder, "W702"), "one defect, one rule"


def test_files_for_other_programs(base_of, tmp_path):
    folder = copied(base_of("llama-tied"), tmp_path / "model")
    save_file({}, folder / "value_head.safetensors")
    (folder / "model.gguf").write_bytes(b"GGUF")
    (folder / "training_args.bin").write_bytes(b"PK")
    finding = only(folder, "W703")
    assert (finding.severity, finding.where) == ("info", "value_head.safetensors")
