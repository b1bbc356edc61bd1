"""Diagnostics, found by folder: one rule, one file, whose docstring is its page."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from suture.model_folder import ModelFolder
from suture.rules.base import Case, Rule
from suture.run_folder import RunFolder
from suture.values import Audit, Finding, Options, Repair

SEVERITIES = ("error", "warning", "info")


def _discover() -> Mapping[str, Rule]:
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")
    rules = [importlib.import_module(f"{__name__}.{n}").RULE for n in names]
    return MappingProxyType({rule.code: rule for rule in rules})


RULES: Mapping[str, Rule] = _discover()


def diagnose(case: Case) -> tuple[Finding, ...]:
    """All findings of all rules on a base and an adapter, most severe first, then by code and place."""
    return ordered(f for rule in RULES.values() if rule.pair for f in rule.pair(case))


def diagnose_model(model: ModelFolder) -> tuple[Finding, ...]:
    """All findings of all rules on a finished model folder."""
    return ordered(f for rule in RULES.values() if rule.model for f in rule.model(model))


def diagnose_run(run: RunFolder) -> tuple[Finding, ...]:
    """All findings of all rules on a trainer's checkpoint."""
    return ordered(f for rule in RULES.values() if rule.run for f in rule.run(run))


def diagnose_live(audit: Audit) -> tuple[Finding, ...]:
    """All findings of all rules on a model in memory."""
    return ordered(f for rule in RULES.values() if rule.live for f in rule.live(audit))


def repairs(case: Case) -> tuple[Repair, ...]:
    """What each rule would change in the adapter so that it finds nothing any more."""
    return tuple(repair for rule in RULES.values() if rule.fix and (repair := rule.fix(case)) is not None)


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings, most severe first, then by code and place."""
    return tuple(sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.code, f.where)))


def ignorable(finding: Finding, options: Options) -> bool:
    """True when the user asked to go on in spite of this finding, and its rule allows it."""
    return finding.code in options.ignore and RULES[finding.code].may_ignore
