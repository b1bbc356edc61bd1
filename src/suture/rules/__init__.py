"""Diagnostics, found by folder: one rule, one file, whose docstring is its page."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from suture.rules.base import Case, Rule
from suture.values import Finding, Options

SEVERITIES = ("error", "warning", "info")


def _discover() -> Mapping[str, Rule]:
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")
    rules = [importlib.import_module(f"{__name__}.{n}").RULE for n in names]
    return MappingProxyType({rule.code: rule for rule in rules})


RULES: Mapping[str, Rule] = _discover()


def diagnose(case: Case) -> tuple[Finding, ...]:
    """All findings of all rules, most severe first, then by code and place."""
    findings = [finding for rule in RULES.values() for finding in rule.check(case)]
    return tuple(sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.code, f.where)))


def ignorable(finding: Finding, options: Options) -> bool:
    """True when the user asked to go on in spite of this finding, and its rule allows it."""
    return finding.code in options.ignore and RULES[finding.code].may_ignore
