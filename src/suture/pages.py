"""The pages of rules and methods: their modules' docstrings, which say what they find or compute."""

from __future__ import annotations

import difflib
import importlib
import inspect
from dataclasses import dataclass
from typing import Literal

from suture.errors import UsageError
from suture.methods import METHODS
from suture.rules import RULES
from suture.rules.base import Rule


@dataclass(frozen=True, slots=True)
class Page:
    """One page: `code` asks for it, `title` is its first line."""

    kind: Literal["rule", "method"]
    code: str
    title: str


def index() -> tuple[Page, ...]:
    """All pages, rules first."""
    rules = [Page("rule", rule.code, rule.name) for rule in RULES.values()]
    methods = [Page("method", name, _docstring(f"suture.methods.{name}").partition("\n")[0]) for name in METHODS]
    return (*rules, *methods)


def explain(code: str) -> str:
    """The page of a rule, by its code or name, or of a method, by its name, as Markdown.

    Raises:
        UsageError: there is no such page; close matches are named.
    """
    rules = {key: rule for rule in RULES.values() for key in (rule.code, rule.name)}
    wanted = code.strip()
    for key in (wanted, wanted.upper(), wanted.lower()):
        if key in rules:
            return _rule_page(rules[key])
        if key in METHODS:
            return f"# {key}\n\n{_docstring(f'suture.methods.{key}')}\n"
    names = [*rules, *METHODS]
    close = [*difflib.get_close_matches(wanted.upper(), names), *difflib.get_close_matches(wanted.lower(), names)]
    raise UsageError(
        f"there is no page {wanted!r}",
        expected="the code or the name of a rule, or the name of a method",
        do=f"Did you mean {' or '.join(dict.fromkeys(close))}?" if close else "`suture explain` lists all pages.",
    )


def _rule_page(rule: Rule) -> str:
    """The page, with a line below its title that tells how severe the rule is."""
    title, _, rest = _docstring(module_of(rule)).partition("\n")
    effect = f"Stops a merge, unless `--ignore {rule.code}` is passed." if rule.may_ignore else "Stops a merge."
    severity = f"*{rule.severity.capitalize()}.* {effect if rule.severity == 'error' else 'A merge goes on.'}"
    return f"{title}\n\n{severity}\n{rest}\n"


def module_of(rule: Rule) -> str:
    """The module that is a rule's page, by its name."""
    return f"suture.rules.{rule.code.lower()}_{rule.name.replace('-', '_')}"


def _docstring(module: str) -> str:
    return inspect.cleandoc(importlib.import_module(module).__doc__ or "")
