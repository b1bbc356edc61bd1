"""The journal is trusted only when it is of this very run, whole, and of this boot."""

from dataclasses import replace

import pytest

from suture.execute.journal import Head, boot_id, finished, head_line, piece_line

HEAD = Head(plan_id="p", inputs="i", kernel="k", pieces="16", boot="b")
TEXT = head_line(HEAD) + piece_line(0) + piece_line(12) + piece_line(3)


def test_what_was_written_is_read():
    assert finished(TEXT, HEAD, 13) == {0, 3, 12}


@pytest.mark.parametrize("n_lost", [1, 2])
def test_a_torn_last_line_is_ignored(n_lost):
    assert finished(TEXT[:-n_lost], HEAD, 13) == {0, 12}


def test_a_torn_number_is_not_another_number():
    assert finished(head_line(HEAD) + b"1", HEAD, 13) == frozenset()


@pytest.mark.parametrize(
    "other",
    [{"plan_id": "q"}, {"inputs": "j"}, {"kernel": "l"}, {"pieces": "17"}, {"boot": "c"}],
    ids=lambda change: next(iter(change)),
)
def test_the_journal_of_another_run_is_not_trusted(other):
    assert finished(TEXT, replace(HEAD, **other), 13) == frozenset()


def test_without_a_boot_id_nothing_is_trusted():
    head = replace(HEAD, boot="")
    assert finished(head_line(head) + piece_line(0), head, 13) == frozenset()


@pytest.mark.parametrize("line", [b"x\n", b"13\n", b"-1\n", b"\n", b"1 2\n"])
def test_a_damaged_journal_is_not_trusted(line):
    assert finished(TEXT + line + piece_line(1), HEAD, 13) == frozenset()


@pytest.mark.parametrize("text", [b"", b"\n", head_line(HEAD)[:-1]])
def test_a_journal_without_a_head_is_empty(text):
    assert finished(text, HEAD, 13) == frozenset()


def test_the_boot_has_one_name():
    assert boot_id() == boot_id()
