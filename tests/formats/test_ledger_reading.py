"""A ledger is read, or what is wrong with it is told."""

from __future__ import annotations

import json

import pytest
from ledgers import beside
from rule_cases import BOTH, adapter

from suture.errors import FormatError
from suture.formats.ledger import NAME, ledger_or_problem, read_ledger


def test_none_is_no_problem(tmp_path):
    assert ledger_or_problem(tmp_path) == (None, "")


def test_a_ledger(tmp_path):
    folder = beside(adapter(tmp_path, BOTH))
    ledger, problem = ledger_or_problem(folder)
    assert ledger == read_ledger(folder)
    assert ledger is not None
    assert not problem


def spoilt(**fields):
    return lambda data: {**data, **fields}


RECORD = {"name": 3, "shape": [1], "dtype": "F32", "group": "lora_A", "lr": None}
BASE = {"name": 3, "fingerprint": None, "quantize": None}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoilt(version=2), "version 2"),
        (spoilt(step="1"), "no number"),
        (spoilt(tensors=[RECORD]), "no text"),
        (spoilt(base=BASE), "no text"),
        (spoilt(optimizer=[1]), "no text"),
        (spoilt(tensors=3), "Ledger"),
        (spoilt(adapter_config=[]), "Ledger"),
        (lambda data: {"version": 1}, "Ledger"),
        (lambda data: [], "is a list"),
    ],
)
def test_a_broken_one(tmp_path, spoil, words):
    path = beside(adapter(tmp_path, BOTH)) / NAME
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(FormatError, match=words):
        read_ledger(tmp_path)
    ledger, problem = ledger_or_problem(tmp_path)
    assert ledger is None
    assert words in problem
