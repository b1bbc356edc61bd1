"""The receipt's sums find every changed byte, also where a sample does not look."""

from __future__ import annotations

import pytest
from verification.made import DOWN, flip_bit, make

from suture.verification import hashes
from suture.verification.hashes import RECEIPT


def test_no_receipt_no_check(tmp_path):
    made = make(tmp_path)
    assert hashes.check(made.folder, made.plan, made.folder) == ()


def test_whole_files_pass(tmp_path, receipt_of):
    made = make(tmp_path)
    receipt = receipt_of(made)
    (check,) = hashes.check(made.folder, made.plan, made.folder)
    assert (check.ok, check.n_checked, check.detail) == (True, len(receipt.sha256), "")


def test_a_changed_bit_and_a_missing_file_are_named(tmp_path, receipt_of):
    made = make(tmp_path)
    receipt_of(made)
    flip_bit(made, DOWN, at=100)
    (made.folder / "config.json").unlink()
    (check,) = hashes.check(made.folder, made.plan, made.folder)
    assert not check.ok
    assert check.detail == "config.json is missing; model-00002-of-00002.safetensors has changed since"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"base_fingerprint": "x"}, "another base model"), ({"adapter_sha256": "x"}, "another adapter")],
)
def test_a_receipt_of_other_inputs(tmp_path, receipt_of, changes, words):
    made = make(tmp_path)
    receipt_of(made, **changes)
    (check,) = hashes.check(made.folder, made.plan, made.folder)
    assert not check.ok
    assert words in check.detail


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}'])
def test_a_malformed_receipt_is_no_receipt(tmp_path, text):
    made = make(tmp_path)
    (made.folder / RECEIPT).write_text(text)
    (check,) = hashes.check(made.folder, made.plan, made.folder)
    assert not check.ok
    assert "malformed" in check.detail
    assert hashes.read_receipt(made.folder) is None
