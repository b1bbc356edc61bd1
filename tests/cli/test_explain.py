"""suture explain"""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from suture import pages
from suture.cli import _show
from suture.rules import RULES


@pytest.mark.parametrize("code", ["T401", "tied-apart", "dora"])
def test_a_page(run, code):
    result = run("explain", code)
    assert (result.exit_code, result.stdout) == (0, pages.explain(code).rstrip("\n") + "\n")


def test_json(document):
    assert document("explain", "t401") == (0, {"code": "t401", "page": pages.explain("T401")})


def test_the_list(run, document):
    lines = run("explain").stdout.splitlines()
    assert {line.split()[0] for line in lines} >= {*RULES, "lora"}
    assert {page["code"] for page in document("explain")[1]} >= set(RULES)


def test_an_unknown_page(run):
    result = run("explain", "T41")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "T401" in result.stderr


def test_a_page_on_a_terminal():

    out = Console(file=StringIO(), force_terminal=True, width=80)
    _show.page(out, "# Title\n\n*Error.* Text.\n")
    assert "# Title" not in out.file.getvalue()
    assert "Title" in out.file.getvalue()
