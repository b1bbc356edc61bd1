"""The ledger survives its file, knows its version, and hashes what turns text into ids."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata

import pytest
from test_differences import ledger_of
from tiny import make_tokenizer, wrapped

from suture.errors import FormatError
from suture.training import ledger as ledgers
from suture.values import Ancestor

pytestmark = pytest.mark.usefixtures("quiet_torch")


def test_a_ledger_comes_back_as_it_was_written(tmp_path):
    ledger, _ = ledger_of(wrapped(), tmp_path, lineage=(Ancestor("first", "a" * 64, 7, ("rank 4 → 8",)),))
    ledgers.write(tmp_path, ledger)
    assert ledgers.read(tmp_path) == ledger
    assert ledgers.read(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("change", [{"version": 99}, {"version": None}, {"surprise": 1}, {"step": None, "tensors": 3}])
def test_another_ledger_is_refused(change, tmp_path):
    ledger, _ = ledger_of(wrapped(), tmp_path)
    ledgers.write(tmp_path, ledger)
    path = tmp_path / ledgers.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError):
        ledgers.read(tmp_path)


def test_every_file_but_the_ledger_is_hashed(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / ledgers.NAME).write_text("{}")
    (tmp_path / "folder").mkdir()
    assert ledgers.hash_files(tmp_path) == {"a.bin": hashlib.sha256(b"abc").hexdigest()}


def test_versions_are_those_that_are_installed():
    found = ledgers.versions()
    assert found["torch"] == metadata.version("torch")
    assert {"python", "peft", "transformers"} <= found.keys()


def test_the_tokenizers_hash_follows_what_it_does():
    first = ledgers.tokenizer_sha256(make_tokenizer())
    used = make_tokenizer()
    used("1 + 1", truncation=True, max_length=2, padding="max_length")  # leaves its state in the fast tokenizer
    assert ledgers.tokenizer_sha256(used) == first
    grown, spoken = make_tokenizer(), make_tokenizer()
    grown.add_tokens(["<new>"])
    spoken.chat_template = "{{ messages }}"
    assert len({first, ledgers.tokenizer_sha256(grown), ledgers.tokenizer_sha256(spoken)}) == 3


def test_a_tokenizer_after_its_folder_has_the_same_hash(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    again = type(make_tokenizer()).from_pretrained(tmp_path)
    assert ledgers.tokenizer_sha256(again) == ledgers.tokenizer_sha256(make_tokenizer())


def test_processors_are_looked_into_and_image_processors_have_no_hash():
    class Processor:
        tokenizer = make_tokenizer()
        chat_template = tokenizer.chat_template

    class Images:
        size = 3

    assert ledgers.tokenizer_sha256(Processor()) == ledgers.tokenizer_sha256(make_tokenizer())
    assert ledgers.tokenizer_sha256(Images()) is None
