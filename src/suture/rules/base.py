"""What a rule is, and the pair that most rules look at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from suture.beside import Beside
from suture.measures import Measures, Survival
from suture.model_folder import ModelFolder
from suture.planning import Draft
from suture.run_folder import RunFolder
from suture.stats import Stats
from suture.values import (
    Adapter,
    Arch,
    Audit,
    Checkpoint,
    Finding,
    Ledger,
    Options,
    Repair,
    Resolved,
    Settled,
    Severity,
    Sides,
)


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that is known before a merge starts: headers, configs, bindings, and what reading the adapter told."""

    checkpoint: Checkpoint
    adapter: Adapter
    arch: Arch
    resolved: Resolved
    settled: Settled
    draft: Draft
    options: Options
    stats: Mapping[str, Stats] | None = None  # by adapter tensor; None when only headers were read
    frozen: Mapping[str, float] | None = None  # saved base copies → share of their rows that equal the base's
    uneven: tuple[str, ...] = ()  # adapter tensors that should repeat another one and do not
    ledger: Ledger | None = None  # of the training run, if it stands beside the adapter
    ledger_problem: str = ""  # why the ledger beside the adapter cannot be read; empty where it can, or there is none
    sides: Sides = field(default_factory=lambda: Sides(()))
    beside: Beside = field(default_factory=Beside)  # small files beside the adapter and the base
    base_fingerprint: str | None = None  # of the base's sampled bytes; None when only headers were read
    adapter_sha256: str | None = None  # of the adapter's weight file; None as above
    measures: Measures | None = None  # base and adapter together; only of `check --deep`
    survival: tuple[Survival, ...] = ()  # of updates in weights that are quantised again; empty as above


@dataclass(frozen=True, slots=True)
class Rule:
    """One diagnostic. Its module's docstring is its page; the file is named code_name.

    What is looked at decides which check runs: a base with an adapter (`pair`), a finished model folder (`model`),
    a trainer's checkpoint (`run`), a model in memory (`live`). Each yields findings made by `Rule.finding`.
    A merge goes on in spite of an error only where `may_ignore`. `deep` rules need values: `--deep`, and every merge.
    """

    code: str
    name: str
    severity: Severity
    pair: Callable[[Case], Iterable[Finding]] | None = None
    model: Callable[[ModelFolder], Iterable[Finding]] | None = None
    run: Callable[[RunFolder], Iterable[Finding]] | None = None
    live: Callable[[Audit], Iterable[Finding]] | None = None
    fix: Callable[[Case], Repair | None] | None = None
    may_ignore: bool = False
    deep: bool = False
    modes: tuple[str, ...] = ()  # the failure modes that it finds: see `suture.modes`

    def finding(self, where: str, found: str, expected: str, do: str, *, severity: Severity | None = None) -> Finding:
        """A finding of this rule, as severe as the rule unless told."""
        return Finding(self.code, self.name, severity or self.severity, where, found, expected, do)


def listed(names: Collection[str], limit: int = 3) -> str:
    """The first few names, sorted, and how many more there are."""
    first = ", ".join(sorted(names)[:limit])
    return f"{first} and {len(names) - limit} more" if len(names) > limit else first


def from_problems(case: Case, code: str, name: str, severity: Severity = "error") -> Iterable[Finding]:
    """The problems that resolving, settling and drafting met under this code, as findings."""
    for problem in (*case.resolved.problems, *case.settled.problems, *case.draft.problems):
        if problem.code == code:
            yield Finding(code, name, severity, problem.where, problem.found, problem.expected, problem.do)


def from_audit(audit: Audit, rule: Rule, expected: str) -> Iterable[Finding]:
    """The differences that the audit of a model in memory told under this rule's code, as findings."""
    for told in audit.differences:
        if told.code == rule.code:
            yield rule.finding(f"model in memory: {told.group}", told.found, expected, told.do)
