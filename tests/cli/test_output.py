"""Text for people."""

from __future__ import annotations

import pytest

from suture.cli._output import console, counted, line, size, styled
from suture.errors import printable


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1.0 KiB"), (5 * 2**30, "5.0 GiB"), (3 * 2**50, "3,072.0 TiB")],
)
def test_sizes(n_bytes, text):
    assert size(n_bytes) == text


@pytest.mark.parametrize(("n", "text"), [(0, "0 errors"), (1, "1 error"), (2000, "2,000 errors")])
def test_numbers(n, text):
    assert counted(n, "error") == text


@pytest.mark.parametrize(
    ("text", "shown"), [("a→b\nc", "a→b\nc"), ("\x1b[0m\r\x07", "\\x1b[0m\\x0d\\x07"), ("\u202e", "\\x202e")]
)
def test_what_could_move_the_cursor_is_escaped(text, shown):
    assert printable(text) == shown


def test_lines_are_never_wrapped(capsys):
    line(console(), "x" * 500, " [red]")
    assert capsys.readouterr().out == "x" * 500 + " [red]\n"


def test_colours_can_be_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    line(console(), styled("red", "bold red"))
    assert capsys.readouterr().out == "\x1b[1;31mred\x1b[0m\n"
    monkeypatch.setenv("FORCE_COLOR", "")
    line(console(), styled("red", "bold red"))
    assert capsys.readouterr().out == "red\n"
