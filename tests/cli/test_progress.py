"""Progress bars."""

from __future__ import annotations

import io
import sys

from suture.cli import _progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_none_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with _progress.shown() as progress:
        assert progress is None


def test_bars_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with _progress.shown() as progress:
        assert terminal.getvalue() == ""  # nothing before the first bytes
        progress("merge", 512, 1024)
        progress("merge", 512, 1024)
        progress("verify", 1024, 1024)
    drawn = terminal.getvalue()
    assert "merge" in drawn
    assert "verify" in drawn
    assert "1.0/1.0 KiB" in drawn.replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert capsys.readouterr().out == ""


def test_a_sign_while_values_are_read(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with _progress.busy("reading values"):
        pass
    assert "reading values" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", quiet := io.StringIO())
    with _progress.busy("reading values"):
        pass
    assert quiet.getvalue() == ""
