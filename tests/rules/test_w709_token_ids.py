"""W709: ids of special tokens."""

from __future__ import annotations

import pytest
from model_cases import copied, edit, found, only
from tiny import VOCAB, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory, quiet_torch):
    return make_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def folder(base, tmp_path):
    return copied(base, tmp_path / "model")


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("config.json", "eos_token_id"),
        ("generation_config.json", "eos_token_id"),
        ("generation_config.json", "pad_token_id"),
    ],
)
def test_outside_the_vocabulary(folder, file, field):
    edit(folder / file, lambda c: c.update({field: [1, VOCAB]}))
    finding = only(folder, "W709")
    assert (finding.severity, finding.where) == ("error", f"{file}: {field}")


def test_generation_ends_elsewhere(folder):
    edit(folder / "generation_config.json", lambda c: c.update(eos_token_id=7))
    finding = only(folder, "W709")
    assert (finding.severity, finding.where) == ("warning", "generation_config.json: eos_token_id")


def test_the_tokenizer_ends_elsewhere(folder):
    edit(folder / "tokenizer_config.json", lambda c: c.update(eos_token="<unk>"))
    finding = only(folder, "W709")
    assert finding.where == "tokenizer_config.json: eos_token"
    assert "(2)" in finding.found


def test_several_ends(folder):
    edit(folder / "generation_config.json", lambda c: c.update(eos_token_id=[7, 1]))
    edit(folder / "tokenizer_config.json", lambda c: c.update(eos_token={"content": "<eos>"}))
    assert not found(folder, "W709")


def test_no_tokenizer(base_of):
    assert only(base_of("mistral"), "W709").severity == "info"
    assert not found(base_of("vit"), "W709")


def test_a_padding_of_minus_one(folder):
    edit(folder / "config.json", lambda c: c.update(pad_token_id=-1))
    assert not found(folder, "W709")
