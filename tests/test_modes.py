"""The catalogue: no known way in which adapters go wrong is passed over in silence."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from suture import pages
from suture.modes import MODES
from suture.rules import RULES

TESTS = Path(__file__).parent
ROWS = {row.code: row for row in pages.modes()}


def test_all_are_there_once():
    assert [mode.code for mode in MODES] == [f"F{n:02}" for n in range(1, 63)]
    assert len({mode.title for mode in MODES}) == 62


@pytest.mark.parametrize("code", ROWS)
def test_something_stands_against_each(code):
    row = ROWS[code]
    assert row.rules or row.tests or row.reason


@pytest.mark.parametrize("code", [code for code, row in ROWS.items() if row.tests])
def test_the_tests_of_a_guarantee_exist(code):
    for test in ROWS[code].tests:
        file, _, name = test.partition("::")
        tree = ast.parse((TESTS / file).read_bytes())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test


def test_rules_name_modes_that_there_are():
    assert {mode for rule in RULES.values() for mode in rule.modes} <= ROWS.keys()
