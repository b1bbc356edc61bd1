"""What is told when something fails."""

from __future__ import annotations

import json

import pytest
import typer

from suture import errors
from suture.cli._errors import BUG, told
from suture.values import Check, Verdict


def classes(root=errors.SutureError):
    return [root, *(c for sub in root.__subclasses__() for c in classes(sub))]


def raised(error, *, json=False, debug=False):
    with pytest.raises(typer.Exit) as caught, told(json=json, debug=debug):
        raise error
    return caught.value.exit_code


ORDINARY = [c for c in classes() if c not in (errors.Findings, errors.NotVerified)]


@pytest.mark.parametrize("cls", ORDINARY, ids=lambda c: c.__name__)
def test_each_class_has_its_exit_code(cls, capsys):
    assert raised(cls("found this", where="a.safetensors: w", expected="that", do="Do it.")) == cls.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: a.safetensors: w: found this\n  expected: that\n  do: Do it.\n"


def test_parts_that_are_empty_are_left_out(capsys):
    raised(errors.InputError("found this"))
    assert capsys.readouterr().err == "error: found this\n"


def test_one_document(capsys):
    assert raised(errors.FormatError("bad", where="w"), json=True) == 11
    out, err = capsys.readouterr()
    assert err == ""
    error = {"type": "FormatError", "exit_code": 11, "found": "bad", "where": "w", "expected": "", "do": ""}
    assert json.loads(out) == {"error": error, "findings": []}


def test_a_bad_verdict_is_shown(capsys):
    verdict = Verdict(ok=False, checks=(Check("hashes", False, 3, "one differs"),))
    assert raised(errors.NotVerified("not right", verdict=verdict)) == 3
    assert "✗ hashes: 3 checked; one differs" in capsys.readouterr().err
    raised(errors.NotVerified("not right", verdict=verdict), json=True)
    assert json.loads(capsys.readouterr().out)["verdict"]["checks"][0]["name"] == "hashes"


@pytest.mark.parametrize("debug", [False, True])
def test_a_bug(capsys, debug):
    assert raised(ZeroDivisionError("oops"), debug=debug) == BUG
    err = capsys.readouterr().err
    assert "this is a bug in suture: ZeroDivisionError: oops" in err
    assert ("Traceback" in err) == debug


def test_a_bug_is_one_document_too(capsys):
    assert raised(ZeroDivisionError("oops"), json=True) == BUG
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == BUG


def test_ctrl_c(capsys):
    assert raised(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "error: stopped\n  do: Nothing was left behind.\n"


def test_names_cannot_change_the_terminal(capsys):
    raised(errors.InputError("a\x1b[31mname", where="[bold]x"))
    assert capsys.readouterr().err == "error: [bold]x: a\\x1b[31mname\n"
