"""Vocabularies from the files of strangers: token → id, or a named error."""

import json
import os

import pytest

from suture.errors import FormatError
from suture.formats import vocabulary
from suture.formats.vocabulary import MAX_IDS, read_vocabulary

FAST = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}


def folder_with(folder, **files):
    for name, data in files.items():
        text = data if isinstance(data, str) else json.dumps(data)
        (folder / name.replace("_", ".", 1)).write_text(text, encoding="utf-8", newline="")
    return folder


def test_the_kinds_of_files(tmp_path):
    assert read_vocabulary(tmp_path) is None
    assert read_vocabulary(folder_with(tmp_path, vocab_txt="a\r\nb\rc\n\nd")) == {"a": 0, "b": 1, "c": 2, "d": 4}
    (tmp_path / "added_tokens.json").write_text('{"x": 9}')
    assert read_vocabulary(folder_with(tmp_path, vocab_json={"a": 0})) == {"a": 0, "x": 9}
    assert read_vocabulary(folder_with(tmp_path, tokenizer_json=FAST)) == {"a": 0, "b": 1, "<s>": 2}
    unigram = {"model": {"vocab": [["<unk>", 0.0], ["a", -1.0]]}}
    assert read_vocabulary(folder_with(tmp_path, tokenizer_json=unigram)) == {"<unk>": 0, "a": 1}


@pytest.mark.parametrize("number", [True, None, 1.0, "1", -1, MAX_IDS, 10**30, [], {}])
@pytest.mark.parametrize("file", ["tokenizer_json", "added", "vocab_json"])
def test_ids_that_are_none(file, number, tmp_path):
    data = {
        "tokenizer_json": {**FAST, "model": {"vocab": {"a": number}}},
        "added": {**FAST, "added_tokens": [{"id": number, "content": "<s>"}]},
        "vocab_json": {"a": number},
    }[file]
    folder_with(tmp_path, **{"tokenizer_json" if file == "added" else file: data})
    with pytest.raises(FormatError, match="has the id"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("entry", [1, None, [], [[]], [1, 2]])
def test_tokens_that_are_no_text(entry, tmp_path):
    folder_with(tmp_path, tokenizer_json={"model": {"vocab": [entry]}})
    with pytest.raises(FormatError):
        read_vocabulary(tmp_path)


def test_a_list_of_tokens_is_bounded_and_text(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"a\n\xff")
    with pytest.raises(FormatError, match="not UTF-8"):
        read_vocabulary(tmp_path)
    os.truncate(tmp_path / "vocab.txt", vocabulary.MAX_JSON_BYTES + 1)  # a sparse file
    with pytest.raises(FormatError, match="at most"):
        read_vocabulary(tmp_path)
