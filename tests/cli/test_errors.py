"""What is told when something fails."""

from __future__ import annotations

import json

import pytest
from click.exceptions import Exit

from suture import errors
from suture.cli._errors import BUG, told
from suture.values import Audit, Check, Difference, Verdict


def classes(root=errors.SutureError):
    return [root, *(c for sub in root.__subclasses__() for c in classes(sub))]


def raised(error, *, json=False, debug=False):
    with pytest.raises(Exit) as caught, told(json=json, debug=debug):
        raise error
    return caught.value.exit_code


WITH_VALUES = (errors.Findings, errors.NotVerified, errors.AuditFailed, errors.ResumeRefused)
ORDINARY = [c for c in classes() if c not in WITH_VALUES]


@pytest.mark.parametrize("cls", ORDINARY, ids=lambda c: c.__name__)
def test_each_class_has_its_exit_code(cls, capsys):
    assert raised(cls("found this", where="a.safetensors: w", expected="that", do="Do it.")) == cls.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: a.safetensors: w: found this\n  expected: that\n  do: Do it.\n"


FROZEN = Difference("embeddings", "lm_head is frozen: 7 parameters", "Thaw it.", ("lm_head.weight",), 7)


def test_differences_are_told_in_words_and_as_data(capsys):
    assert raised(errors.ResumeRefused([FROZEN], where="run/checkpoint-3")) == 14
    err = capsys.readouterr().err
    assert "run/checkpoint-3: 1 difference:\n  embeddings: lm_head is frozen: 7 parameters\n    do: Thaw it.\n" in err
    for error in (errors.ResumeRefused([FROZEN], where="x"), errors.AuditFailed(Audit((), 0, 7, {}, (FROZEN,), True))):
        raised(error, json=True)
        data = json.loads(capsys.readouterr().out)
        assert data["differences"] == [
            {
                "group": "embeddings",
                "found": FROZEN.found,
                "do": FROZEN.do,
                "names": ["lm_head.weight"],
                "n_params": 7,
                "code": "",
            }
        ]


def test_a_failed_audit_was_shown_before(capsys):
    assert raised(errors.AuditFailed(Audit((), 0, 7, {}, (FROZEN,), True))) == 4
    assert capsys.readouterr().err == "error: the audit failed. No step was made.\n"


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


@pytest.mark.parametrize("field", ["where", "expected", "do"])
def test_an_error_as_text_moves_no_cursor_and_can_be_printed(field):
    told = str(errors.InputError("a\x1b[2J", **{field: "\udcff\u202e\r"}))
    assert "a\\x1b[2J" in told
    assert "\\xdcff\\x202e\\x0d" in told
    assert told.encode().isascii()
