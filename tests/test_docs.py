"""The documentation says what the program does: help, public names, and commands that are written down."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import suture
from suture.cli.app import app
from suture.rules import RULES

ROOT = Path(__file__).parents[1]
CONTEXT = click.Context(app)
COMMANDS: dict[str, Any] = {name: app.get_command(CONTEXT, name) for name in app.list_commands(CONTEXT)}
PAGES = sorted(path.name for path in ROOT.glob("*.md"))
PUBLIC = sorted(set(suture.__all__) - {"__version__"})


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help(name):
    command = COMMANDS[name]
    assert command.help, "a command says what it does"
    missing = [p.name for p in command.params if not getattr(p, "help", None) and p.name != "help"]
    assert not missing, "every option and argument has a help text"
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert command.help.splitlines()[0].split()[0] in shown.output


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there_and_documented(name):
    assert inspect.getdoc(getattr(suture, name))


def test_what_is_public():
    """What a star import brings is what `dir` shows; the verbs of the command line are the functions.

    `audit` has no command: it looks at a model in memory; `forecast` is in the one of `plan`.
    `suture.rules` is the package with the rules themselves.
    """
    namespace: dict[str, object] = {}
    exec("from suture import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(suture.__all__) == set(dir(suture))
    assert {name for name in PUBLIC if inspect.isfunction(getattr(suture, name))} == {
        *COMMANDS,
        "audit",
        "forecast",
    } - {"rules"}


def test_no_public_name_is_hidden_by_a_module():
    """Python puts a submodule into its package's namespace when it is imported, over any name of ours."""
    modules = {module.name for module in pkgutil.iter_modules(suture.__path__)}
    assert not modules & set(PUBLIC)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'marge'"):
        suture.marge  # noqa: B018


def test_the_version_is_said_once():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert project.get("version", suture.__version__) == suture.__version__
    assert f"## {suture.__version__}" in text("CHANGELOG.md").replace("[", "").replace("]", "")


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_a_page_exist(page):
    """Every `suture VERB` and `make TARGET`, in a block or in a line, with the options behind it."""
    code = [
        line
        for block in re.findall(r"^```\w*\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    code += re.findall(r"`([^`\n]+)`", text(page))
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    for line in code:
        words = line.partition("#")[0].split()
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= targets, line
        elif words[:1] == ["suture"] and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in COMMANDS, line
            known = {option for p in COMMANDS[words[1]].params for option in p.opts}
            used = {word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
            assert used <= known | {"--help"}, line


@pytest.mark.parametrize("page", PAGES)
def test_files_and_codes_in_a_page_exist(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text(page))
    files = re.findall(r"`((?:src|tests|demo|benchmarks|\.ci)/[\w./-]*)`", text(page))
    assert not [name for name in (*links, *files) if "NAME" not in name and not (ROOT / name).exists()]
    codes = set(re.findall(r"\b[AMNTXWRL]\d{3}\b", text(page)))
    assert codes <= RULES.keys()


def test_python_in_the_readme_calls_what_exists():
    called = set(
        re.findall(r"\bsuture\.(\w+)", "\n".join(re.findall(r"```python\n(.*?)```", text("README.md"), re.DOTALL)))
    )
    assert called
    assert called <= set(suture.__all__)


def test_the_generated_pages_are_those_of_the_source(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    make_pages = importlib.import_module("make_pages")
    assert text("docs/rules.md") == make_pages.rules(), "run `make docs`"
    assert text("docs/failure_modes.md") == make_pages.failure_modes(), "run `make docs`"


def test_every_module_says_what_it_is():
    names = [m.name for m in pkgutil.walk_packages(suture.__path__, "suture.") if not m.name.endswith("__main__")]
    assert not [name for name in names if not importlib.import_module(name).__doc__]
