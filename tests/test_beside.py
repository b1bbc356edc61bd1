"""What small files beside an adapter tell: untrusted text, read by a pattern."""

from __future__ import annotations

import json

import pytest
from rule_cases import BOTH, adapter, llama, tokenizer

from suture.beside import AXOLOTL, MAX_BYTES, MAX_LINE, README, Beside, lines_of, look_beside
from suture.errors import FormatError, InputError
from suture.formats import read_adapter, read_checkpoint
from suture.formats.listing import MERGE_RECORD, file_names


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Llama."""
    return llama(tmp_path_factory.mktemp("base") / "tiny-llama")


def look(base, tuned, name=None) -> Beside:
    return look_beside(read_checkpoint(base), read_adapter(tuned, name=name))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("name: a/b", "a/b"),
        ("name:   'a b'  # why", "a b"),
        ('name: "a#b"', "a#b"),
        ("x: 1\nname: 3\n", "3"),
        ("name:\n- a\n", None),
        ("  name: nested", None),
        ("name:a", None),
        ("name: [a/b]", "a/b"),
        ('name: [ "a b" ] # one', "a b"),
        ("name: [a, b]", None),
        ("name: []", None),
        ("name: [a", None),
        ("name: {a: b}", None),
        ("name: >-\n  a\n", None),
        ("name: *a", None),
        ("name: \t ", None),
        ("name: # only this", None),
    ],
)
def test_a_setting_of_one_line(text, value):
    assert lines_of(text).get("name") == value


def test_a_long_line_is_no_setting():
    """Blanks without end cost as much as any other letters: lines are cut, and not searched."""
    blanks = "name: " + " " * MAX_BYTES + "a"
    assert lines_of(f"{blanks}\nname: b\nlong: {'x' * MAX_LINE}\n") == {"name": "b"}
    assert lines_of(f"name: {'x' * (MAX_LINE - 6)}")["name"]


def test_what_cannot_be_read_is_passed_over(base, tmp_path):
    tuned = read_adapter(adapter(tmp_path / "adapter", BOTH))
    (tmp_path / "secret.yaml").write_text("adapter_name_or_path: a\n")
    (tuned.folder / "leaves.yaml").symlink_to(tmp_path / "secret.yaml")
    (tuned.folder / "nothing.yml").symlink_to(tmp_path / "nowhere")
    (tuned.folder / README).symlink_to(tmp_path / "nowhere.md")
    assert not any(look_beside(read_checkpoint(base), tuned).settings.values())


def test_a_folder_that_cannot_be_listed_is_passed_over(base, tmp_path, monkeypatch):
    tuned = read_adapter(adapter(tmp_path, BOTH))
    for name in ("closed", "second"):
        adapter(tmp_path / name, BOTH)

    def names(folder):
        if folder.name == "closed":
            raise InputError("the folder cannot be listed")
        return file_names(folder)

    monkeypatch.setattr("suture.beside.file_names", names)
    assert look_beside(read_checkpoint(base), tuned).other_adapters == ("second",)


def test_a_broken_record_of_the_bases_merge_is_passed_over(tmp_path):
    base = llama(tmp_path / "base")
    (base / MERGE_RECORD).write_text("{")
    assert look(base, adapter(tmp_path / "adapter", BOTH)).receipt == {}


@pytest.mark.parametrize("number", ["²", "9" * 5000, "-1", "x"])
def test_added_tokens_under_what_is_no_id(base, tmp_path, number):
    config = {"eos_token": "b", "added_tokens_decoder": {number: {"content": "b"}}}
    (adapter(tmp_path, BOTH) / "tokenizer_config.json").write_text(json.dumps(config))
    tokens = look(base, tmp_path).tokens
    assert tokens is not None
    assert not tokens.ids


def test_files_of_an_adapter_and_weights_that_nobody_merges(tmp_path):
    base, tuned = llama(tmp_path / "base"), adapter(tmp_path / "adapter", BOTH)
    for path in (base / "adapter_model.bin", base / "adapter_notes.md", tuned / "head.pt", tuned / "optimizer.pt"):
        path.write_bytes(b"")
    beside = look(base, tuned)
    assert (beside.base_adapter, beside.unmerged) == (("adapter_model.bin",), ("head.pt",))


def test_front_matter_and_axolotl_config(base, tmp_path):
    text = "---\r\nbase_model: a\r\n---\r\n# Card\r\n```yaml\nbase_model: b\n```\n"
    text += "See axolotl config\n```yaml\nbase_model: c\n```\n"
    (adapter(tmp_path, BOTH) / README).write_text(text)
    settings = look(base, tmp_path).settings
    assert settings[README] == {"base_model": "a"}
    assert settings[AXOLOTL] == {"base_model": "c"}


@pytest.mark.parametrize(
    "raw", [b"", b"\xff\xfe---\n", b"---\nbase_model: a", b"a: &a [*a, *a]\n" * 9, b"x" * 3 * MAX_BYTES]
)
def test_text_of_any_kind(base, tmp_path, raw):
    for name in (README, "run.yaml"):
        (adapter(tmp_path, BOTH) / name).write_bytes(raw)
    assert all(isinstance(v, str) for fields in look(base, tmp_path).settings.values() for v in fields.values())


def test_nothing_beside(base, tmp_path):
    assert look(base, adapter(tmp_path, BOTH)) == Beside(base_names=(str(base.resolve()), str(base)))


def test_special_tokens(base, tmp_path):
    tokenizer(adapter(tmp_path, BOTH), {"a": 3})
    config = {"eos_token": "a", "pad_token": {"content": "b"}, "bos_token": "c"}
    added = {"added_tokens_decoder": {"9": {"content": "b"}}, "chat_template": "x"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **added}))
    tokens = look(base, tmp_path).tokens
    assert tokens is not None
    assert tokens.ids == {"eos_token": 3, "pad_token": 9}
    assert tokens.has_template


def test_ids_of_the_base(tmp_path):
    base = llama(tmp_path / "base", eos_token_id=7, text_config={"bos_token_id": 1, "eos_token_id": 8})
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6], "pad_token_id": None}))
    ids = look(base, adapter(tmp_path / "adapter", BOTH)).base_ids
    assert ids == {"eos_token": (5, 6), "bos_token": (1,)}


def test_a_broken_tokenizer_is_named(base, tmp_path):
    (adapter(tmp_path, BOTH) / "tokenizer_config.json").write_text("{")
    with pytest.raises(FormatError, match="tokenizer_config"):
        look(base, tmp_path)
