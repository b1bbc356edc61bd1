"""The journal is trusted only when it is of this very run; its pieces also when it is whole, and of this boot."""

from dataclasses import replace

import pytest

from suture.execute.journal import Head, Past, boot_id, head_line, journal_text, piece_line, read_journal, sum_line

HEAD = Head(plan_id="p", inputs="i", kernel="k", pieces="16", boot="b")
TEXT = head_line(HEAD) + piece_line(0) + piece_line(12) + piece_line(3)
SUM, NAME = "0123456789abcdef" * 4, "a b/ü\udc80.safetensors"
NOTHING = frozenset()


def pieces(text, head=HEAD, n_pieces=13):
    return read_journal(text, head, n_pieces).pieces


def test_what_was_written_is_read():
    assert read_journal(TEXT + sum_line(NAME, SUM), HEAD, 13) == Past(frozenset({0, 3, 12}), {NAME: SUM})
    assert read_journal(journal_text(HEAD, {3, 12, 0}, {NAME: SUM}), HEAD, 13).sums == {NAME: SUM}
    assert journal_text(HEAD, {3, 12, 0}, {}) == head_line(HEAD) + b"+0\n+3\n+12\n"


@pytest.mark.parametrize("n_lost", [1, 2])
def test_a_torn_last_line_is_ignored(n_lost):
    assert pieces(TEXT[:-n_lost]) == {0, 12}


def test_a_torn_number_is_not_another_number():
    assert pieces(head_line(HEAD) + b"+1") == NOTHING


@pytest.mark.parametrize("n_lost", [1, 2, 3])
def test_a_torn_line_and_the_next_one_are_not_a_third(n_lost):
    """A disk may take half a line and then, when there is room again, a whole one."""
    assert pieces(TEXT + piece_line(11)[:-n_lost] + piece_line(2), n_pieces=1000) in (NOTHING, {0, 12, 3, 2})
    assert 112 not in pieces(TEXT + b"+1" + piece_line(12), n_pieces=1000)
    assert pieces(TEXT + b"+1" + piece_line(12), n_pieces=1000) == NOTHING


@pytest.mark.parametrize(
    ("other", "doubt"),
    [
        ({"plan_id": "q"}, "another plan"),
        ({"inputs": "j"}, "files were touched"),
        ({"kernel": "l"}, "another kernel"),
        ({"pieces": "17"}, "other pieces"),
    ],
)
def test_the_journal_of_another_run_is_not_trusted(other, doubt):
    past = read_journal(TEXT + sum_line("a", SUM), replace(HEAD, **other), 13)
    assert (past.pieces, past.sums) == (NOTHING, {})
    assert doubt in past.doubt


@pytest.mark.parametrize(("then", "now"), [("b", "c"), ("", ""), ("b", "")])
def test_of_another_boot_only_the_sums_are_worth_trying(then, now):
    text = head_line(replace(HEAD, boot=then)) + piece_line(0) + sum_line("a", SUM)
    past = read_journal(text, replace(HEAD, boot=now), 13)
    assert (past.pieces, past.sums) == (NOTHING, {"a": SUM})
    assert "started anew" in past.doubt


@pytest.mark.parametrize(
    "line", [b"x\n", b"+13\n", b"+-1\n", b"\n", b"+1 2\n", b"17\n", b"++1\n", b"=00 a\n", b"\0" * 9 + b"\n"]
)
def test_a_damaged_journal_is_not_trusted(line):
    past = read_journal(TEXT + line + piece_line(1) + sum_line("a", SUM), HEAD, 13)
    assert (past.pieces, past.sums) == (NOTHING, {"a": SUM})
    assert "damaged" in past.doubt


@pytest.mark.parametrize(
    "text", [b"", b"\n", head_line(HEAD)[:-1], b"{}\n+1\n", b"[1]\n+1\n", b"\0\0\0\n", b"[" * 10_000 + b"\n"]
)
def test_a_journal_without_a_head_is_empty(text):
    past = read_journal(text, HEAD, 13)
    assert (past.pieces, past.sums) == (NOTHING, {})
    assert bool(past.doubt) == bool(text)


def test_the_boot_has_one_name():
    assert boot_id() == boot_id()
