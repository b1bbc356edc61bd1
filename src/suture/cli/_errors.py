"""Errors at the edge: what was found, where, what was expected and what to do; one exit code a class.

Beyond the codes of `suture.errors`: 2 for a wrong call, 70 for a bug, 141 when the reader of stdout went away.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from click.exceptions import Exit

from suture.cli import _output
from suture.errors import AuditFailed, Findings, Interrupted, NotVerified, ResumeRefused, SutureError

if TYPE_CHECKING:
    from suture.values import Finding

BUG, BROKEN_PIPE = 70, 141
ISSUES = "Please report it with the command you ran and the output of the same command with --debug."


@contextmanager
def told(*, json: bool, debug: bool) -> Iterator[None]:
    """Turn whatever is raised inside into a message and an exit code."""
    try:
        yield
    except SutureError as error:
        _tell(error, json=json)
        raise Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        stopped = Interrupted("stopped", do="Nothing was left behind.")
        _tell(stopped, json=json)
        raise Exit(stopped.exit_code) from error
    except (BrokenPipeError, SystemExit) as error:  # rich turns the one into the other
        _close_stdout()
        raise Exit(BROKEN_PIPE) from error
    except Exception as error:  # the edge: nothing may pass it as a traceback
        if debug:
            import traceback

            traceback.print_exc()
        found = f"this is a bug in suture: {type(error).__name__}: {error}"
        _tell(SutureError(found, do=ISSUES), json=json, exit_code=BUG)
        raise Exit(BUG) from error


def _tell(error: SutureError, *, json: bool, exit_code: int | None = None) -> None:
    code = error.exit_code if exit_code is None else exit_code
    try:
        if json:
            _output.document(_data(error, code))
            sys.stdout.flush()
        else:
            _show(error)
    except BrokenPipeError:
        _close_stdout()


def _data(error: SutureError, exit_code: int) -> dict[str, object]:
    """An error as the one JSON document of a command."""
    what = {
        "type": type(error).__name__,
        "exit_code": exit_code,
        "found": error.found,
        "where": error.where,
        "expected": error.expected,
        "do": error.do,
    }
    findings: Sequence[Finding] = error.findings if isinstance(error, Findings) else ()
    more: dict[str, object] = {"verdict": error.verdict} if isinstance(error, NotVerified) else {}
    if isinstance(error, (AuditFailed, ResumeRefused)):
        more["differences"] = error.audit.differences if isinstance(error, AuditFailed) else error.differences
    return {"error": what, "findings": findings, **more}


def _show(error: SutureError) -> None:
    from suture.cli import _show

    out = _output.console(stderr=True)
    if isinstance(error, Findings):
        _show.findings(out, error.findings)
        _output.line(out, error.do)
        return
    if isinstance(error, NotVerified):
        _show.verdict(out, error.verdict)
    if isinstance(error, AuditFailed):  # the display has shown it
        _output.line(out, _output.styled("error: ", "bold red"), "the audit failed. ", error.do)
        return
    _output.line(out, _output.styled("error: ", "bold red"), error.where, ": " if error.where else "", error.found)
    for label, text in (("expected", error.expected), ("do", error.do)):
        if text:
            _output.line(out, _output.styled(f"  {label}: ", "dim"), text)


def _close_stdout() -> None:
    """The reader went away: what Python still wants to write at exit goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
