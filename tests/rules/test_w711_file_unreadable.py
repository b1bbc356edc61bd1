"""W711: files that cannot be read."""

from __future__ import annotations

import pytest
from model_cases import WEIGHTS, copied, found, only


@pytest.fixture
def folder(base_of, tmp_path):
    return copied(base_of("mistral"), tmp_path / "model")


def test_a_file_that_was_cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    finding = only(folder, "W711")
    assert (finding.severity, finding.where) == ("error", WEIGHTS)
    assert "cut" in finding.found


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_that_is_not_whole(folder, name):
    (folder / name).write_text('{"a": ')
    assert only(folder, "W711").where == name


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert only(folder, "W711").where == "config.json"


def test_a_config_that_the_class_refuses(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"num_attention_heads": 4', '"num_attention_heads": "many"'))
    assert only(folder, "W711").where == "config.json"


def test_pickled_weights(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert only(folder, "W711").severity == "warning"


def test_other_json_may_be_a_list(folder):
    (folder / "modules.json").write_text("[]")
    assert not found(folder, "W711")
