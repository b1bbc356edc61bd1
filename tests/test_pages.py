"""Pages: every rule and method has one, in the same form."""

from __future__ import annotations

import re

import pytest

from suture import pages
from suture.errors import UsageError
from suture.methods import METHODS
from suture.rules import RULES

HEADINGS = ["## What it finds", "## Why it matters", "## How it is detected", "## How to fix", "## References"]


@pytest.mark.parametrize("code", RULES)
def test_a_rules_page(code):
    page = pages.explain(code)
    lines = page.splitlines()
    assert lines[0] == f"# {code} {RULES[code].name}"
    assert [line for line in lines if line.startswith("## ")] == HEADINGS
    assert all(len(line) <= 120 for line in lines)
    sections = re.split(r"^## .*$", page, flags=re.MULTILINE)[1:]
    assert all(len(section.strip()) > 20 for section in sections)


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_page(name):
    page = pages.explain(name)
    assert page.startswith(f"# {name}\n")
    assert len(page) > 200


def test_a_page_tells_whether_a_rule_can_be_ignored():
    assert "unless `--ignore M305` is passed" in pages.explain("M305").partition("## ")[0]
    assert "--ignore" not in pages.explain("M301").partition("## ")[0]


def test_a_page_tells_what_the_rule_looks_at_and_what_it_stops():
    assert "Looks at a finished model." in pages.explain("W701")
    assert "Stops a merge" not in pages.explain("W701").partition("## ")[0], "no merge looks at it"
    assert "Stops a merge" not in pages.explain("A204").partition("## ")[0], "a warning"
    assert "`suture fix` can repair it" in pages.explain("M301")
    assert "--deep" in pages.explain("N501").partition("## ")[0]


@pytest.mark.parametrize("asked", ["t401", "T401", " T401 ", "tied-apart", "TIED-APART"])
def test_names_and_codes_in_any_case(asked):
    assert pages.explain(asked) == pages.explain("T401")


@pytest.mark.parametrize(("asked", "close"), [("T41", "T401"), ("tied-appart", "tied-apart"), ("dorra", "dora")])
def test_an_unknown_page_names_close_ones(asked, close):
    with pytest.raises(UsageError) as caught:
        pages.explain(asked)
    assert close in caught.value.do


def test_a_page_like_nothing_else():
    with pytest.raises(UsageError, match="xyzzy"):
        pages.explain("xyzzy")


def test_the_index_lists_all_pages():
    assert {page.code for page in pages.index()} == set(RULES) | set(METHODS)
    assert all(pages.explain(page.code) for page in pages.index())
    assert all(page.title for page in pages.index())
