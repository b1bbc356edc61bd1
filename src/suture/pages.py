"""The pages of rules and methods: their modules' docstrings, which say what they find or compute."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from suture.errors import UsageError
from suture.methods import METHODS
from suture.modes import MODES
from suture.rules import RULES
from suture.rules.base import Rule
from suture.values import Severity

LOOKS_AT = {
    "pair": "a base with an adapter",
    "model": "a finished model",
    "run": "a trainer's checkpoint",
    "live": "a model in memory",
}


@dataclass(frozen=True, slots=True)
class Page:
    """One page: `code` asks for it, `title` is its first line."""

    kind: Literal["rule", "method"]
    code: str
    title: str


FAMILIES = {
    "A": "the adapter's config",
    "M": "names, shapes and config against the base",
    "T": "ties and tokens",
    "N": "numbers",
    "X": "files beside",
    "W": "finished models",
    "R": "training runs",
    "L": "models in memory",
}


@dataclass(frozen=True, slots=True)
class RuleRow:
    """One rule in a table."""

    code: str
    name: str
    severity: Severity
    family: str
    looks_at: tuple[str, ...]
    deep: bool  # needs values: --deep
    fix: bool  # `suture fix` can repair it
    modes: tuple[str, ...]
    summary: str


@dataclass(frozen=True, slots=True)
class ModeRow:
    """One known way in which adapters go wrong, and what stands against it."""

    code: str
    title: str
    rules: tuple[str, ...]
    tests: tuple[str, ...]  # of the guarantees that make it impossible
    reason: str  # why no rule finds it, or what is left


def rules() -> tuple[RuleRow, ...]:
    """All rules, family by family."""
    found = sorted(RULES.values(), key=lambda rule: ([*FAMILIES].index(rule.code[0]), rule.code))
    return tuple(
        RuleRow(
            code=rule.code,
            name=rule.name,
            severity=rule.severity,
            family=FAMILIES[rule.code[0]],
            looks_at=looks_at(rule),
            deep=rule.deep,
            fix=rule.fix is not None,
            modes=rule.modes,
            summary=summary(rule),
        )
        for rule in found
    )


def modes() -> tuple[ModeRow, ...]:
    """The catalogue of failure modes, with the rules that find each."""
    return tuple(
        ModeRow(
            code=mode.code,
            title=mode.title,
            rules=tuple(sorted(code for code, rule in RULES.items() if mode.code in rule.modes)),
            tests=mode.tests,
            reason=mode.reason,
        )
        for mode in MODES
    )


def summary(rule: Rule) -> str:
    """The first sentence of what a rule finds, in one line."""
    found = _docstring(module_of(rule)).partition("## What it finds\n")[2].partition("\n\n")[0]
    text = " ".join(found.split())
    return re.split(r"(?<=[.:]) (?=[A-Z`])", text)[0].rstrip(":.") + "."


def why(rule: Rule) -> str:
    """The first paragraph of why it matters, in one line."""
    return " ".join(_docstring(module_of(rule)).partition("## Why it matters\n")[2].partition("\n\n")[0].split())


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
    """The page, with lines below its title that tell how severe the rule is, what it looks at, and what it stops."""
    title, _, rest = _docstring(module_of(rule)).partition("\n")
    told = [f"*{rule.severity.capitalize()}.* Looks at {_joined([LOOKS_AT[w] for w in looks_at(rule)])}."]
    if rule.pair and rule.severity == "error":
        told.append(f"Stops a merge, unless `--ignore {rule.code}` is passed." if rule.may_ignore else "Stops a merge.")
    if rule.deep:
        told.append("Needs values: `--deep`.")
    if rule.fix:
        told.append("`suture fix` can repair it.")
    return "\n".join([title, "", *told, rest, ""])


def looks_at(rule: Rule) -> tuple[str, ...]:
    """What a rule looks at: pair, model, run, live."""
    return tuple(word for word in LOOKS_AT if getattr(rule, word) is not None)


def _joined(words: Sequence[str]) -> str:
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]


def module_of(rule: Rule) -> str:
    """The module that is a rule's page, by its name."""
    return f"suture.rules.{rule.code.lower()}_{rule.name.replace('-', '_')}"


def _docstring(module: str) -> str:
    return inspect.cleandoc(importlib.import_module(module).__doc__ or "")
