"""One unit, one file, one name: every method and every rule has a page, a test, and the name of its file."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from suture import pages
from suture.methods import METHODS
from suture.rules import RULES

ROOT = Path(__file__).parents[1]
SRC, TESTS = ROOT / "src" / "suture", ROOT / "tests"
NOT_UNITS = {"__init__", "base"}
FAMILIES = "amntxwrl"  # of the rules: see CONTRIBUTING.md


def units(folder: str) -> list[str]:
    return sorted({path.stem for path in (SRC / folder).glob("*.py")} - NOT_UNITS)


def cases_in(path: Path) -> list[str]:
    tree = ast.parse(path.read_bytes())
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]


def test_folders_are_found_whole():
    assert units("methods") == list(METHODS)
    assert [name.partition("_")[0].upper() for name in units("rules")] == list(RULES)
    assert len(METHODS) >= 8
    assert len(RULES) >= 20


@pytest.mark.parametrize("name", units("methods"))
def test_a_method(name):
    page = importlib.import_module(f"suture.methods.{name}").__doc__
    assert "\n" in page.strip(), "a title, then the formula, the shapes and the keys"
    assert cases_in(TESTS / "methods" / f"test_{name}.py")


@pytest.mark.parametrize("name", units("rules"))
def test_a_rule(name):
    code, _, title = name.partition("_")
    rule = RULES[code.upper()]
    assert code[0] in FAMILIES
    assert (rule.code, rule.name) == (code.upper(), title.replace("_", "-"))
    assert pages.module_of(rule) == f"suture.rules.{name}"
    assert importlib.import_module(pages.module_of(rule)).__doc__.startswith(f"# {rule.code} {rule.name}\n")
    tests = cases_in(TESTS / "rules" / f"test_{name}.py")
    assert len(tests) >= 2, "one case that it finds, one that it leaves alone"


@pytest.mark.parametrize("name", units("formats/adapters"))
def test_an_adapter_format(name):
    assert importlib.import_module(f"suture.formats.adapters.{name}").__doc__
    assert cases_in(TESTS / "formats" / "adapters" / f"test_{name}.py")


def test_no_test_is_left_without_its_unit():
    for folder in ("methods", "rules", "formats/adapters"):
        tested = {path.stem.removeprefix("test_") for path in (TESTS / folder).glob("test_*.py")}
        assert tested <= set(units(folder)), folder


def test_codes_in_the_source_are_rules():
    """A problem that is raised under a code that no rule has would be lost."""
    for path in sorted(SRC.rglob("*.py")):
        strings = [n.value for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, ast.Constant)]
        codes = {s for s in strings if isinstance(s, str) and len(s) == 4 and s[:1].isupper() and s[1:].isdigit()}
        assert codes <= RULES.keys(), f"{path.name}: {sorted(codes - RULES.keys())}"
