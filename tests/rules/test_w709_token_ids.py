"""W709: ids of special tokens."""

from __future__ import annotations

import pytest
from model_cases import edit, found, only
from tiny import VOCAB


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("config.json", "eos_token_id"),
        ("generation_config.json", "eos_token_id"),
        ("generation_config.json", "pad_token_id"),
    ],
)
def test_outside_the_vocabulary(with_tokenizer, file, field):
    edit(with_tokenizer / file, lambda c: c.update({field: [1, VOCAB]}))
    finding = only(with_tokenizer, "W709")
    assert (finding.severity, finding.where) == ("error", f"{file}: {field}")


def test_generation_ends_elsewhere(with_tokenizer):
    edit(with_tokenizer / "generation_config.json", lambda c: c.update(eos_token_id=7))
    finding = only(with_tokenizer, "W709")
    assert (finding.severity, finding.where) == ("warning", "generation_config.json: eos_token_id")


def test_the_tokenizer_ends_elsewhere(with_tokenizer):
    edit(with_tokenizer / "tokenizer_config.json", lambda c: c.update(eos_token="<unk>"))
    finding = only(with_tokenizer, "W709")
    assert finding.where == "tokenizer_config.json: eos_token"
    assert "(2)" in finding.found


def test_several_ends(with_tokenizer):
    edit(with_tokenizer / "generation_config.json", lambda c: c.update(eos_token_id=[7, 1]))
    edit(with_tokenizer / "tokenizer_config.json", lambda c: c.update(eos_token={"content": "<eos>"}))
    assert not found(with_tokenizer, "W709")


def test_no_tokenizer(base_of):
    assert only(base_of("mistral"), "W709").severity == "info"
    assert not found(base_of("vit"), "W709")


def test_a_padding_of_minus_one(with_tokenizer):
    edit(with_tokenizer / "config.json", lambda c: c.update(pad_token_id=-1))
    assert not found(with_tokenizer, "W709")
