"""Every error that Suture raises on purpose, with its exit code.

SutureError                     1   anything below
├── Findings                    1   `check` or a merge found errors; all of them are listed
├── NotVerified                 3   the merged files are not what base + adapter gives
├── AuditFailed                 4   what would train is not what the adapter's config promises
├── UsageError                  2   an option or a combination of options makes no sense
├── InputError                 10   a file or folder that was named cannot be used
│   ├── FormatError            11   a header, index or config is malformed or hostile
│   ├── PickleRefused          12   weights are in a pickle file, which can run code
│   ├── InputChanged           13   an input is not what it was when the plan was made
│   └── ResumeRefused          14   a checkpoint or adapter is not what its ledger and the run say
├── OutputError                20   the output cannot be written
│   ├── OutputExists           21   the output folder has files
│   ├── OutputLocked           22   another process is writing it
│   ├── DiskFull               23   there is not enough free space
│   └── NotSaved               24   what lies on the disk is not what was in memory
├── MissingExtra               30   an optional dependency is not installed
└── Interrupted               130   Ctrl-C or SIGTERM
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from suture.values import Audit, Difference, Finding, Verdict


class SutureError(Exception):
    """Says what was found, where, what was expected, and what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, found: str, *, where: str = "", expected: str = "", do: str = "") -> None:
        super().__init__(found)
        self.found = found
        self.where = where
        self.expected = expected
        self.do = do

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.found}" if self.where else self.found]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.do:
            lines.append(f"  do: {self.do}")
        return printable("\n".join(lines))


def printable(text: object) -> str:
    """Text with every character escaped that could move the cursor, change the terminal, or not be encoded."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in str(text))


class Findings(SutureError):
    """Errors were found; `findings` holds all of them, warnings included."""

    def __init__(self, findings: Sequence[Finding], *, do: str = "") -> None:
        self.findings = tuple(findings)
        errors = [f for f in findings if f.severity == "error"]
        noun = "error" if len(errors) == 1 else "errors"
        summary = "; ".join(f"{f.code} {f.where}: {f.found}" for f in errors[:3])
        super().__init__(f"{len(errors)} {noun} found. {summary}", do=do)


class NotVerified(SutureError):
    """The merged files are not what base + adapter gives; `verdict` says which."""

    exit_code = 3

    def __init__(self, found: str, *, verdict: Verdict, where: str = "", do: str = "") -> None:
        super().__init__(found, where=where, do=do)
        self.verdict = verdict


class AuditFailed(SutureError):
    """What would train is not what the adapter's config promises; `audit` says where."""

    exit_code = 4

    def __init__(self, audit: Audit, *, where: str = "") -> None:
        self.audit = audit
        super().__init__(
            "the audit found " + told(audit.differences),
            where=where,
            expected="what the config promises = what the model holds = what trains = what the optimiser moves",
            do="No step was made.",
        )


class UsageError(SutureError):
    """An option or a combination of options makes no sense."""

    exit_code = 2


class InputError(SutureError):
    """A file or folder that was named cannot be used."""

    exit_code = 10


class FormatError(InputError):
    """A header, index or config is malformed or hostile."""

    exit_code = 11


class PickleRefused(InputError):
    """Weights are in a pickle file, which can run code when it is opened."""

    exit_code = 12


class InputChanged(InputError):
    """An input is not what it was when the plan was made."""

    exit_code = 13


class ResumeRefused(InputError):
    """A checkpoint or adapter is not what its ledger and the run say; `differences` are told group by group."""

    exit_code = 14

    def __init__(self, differences: Sequence[Difference], *, where: str) -> None:
        self.differences = tuple(differences)
        super().__init__(told(differences), where=where, do="No step was made.")


class OutputError(SutureError):
    """The output cannot be written."""

    exit_code = 20


class OutputExists(OutputError):
    """The output folder has files."""

    exit_code = 21


class OutputLocked(OutputError):
    """Another process is writing the output."""

    exit_code = 22


class DiskFull(OutputError):
    """There is not enough free space."""

    exit_code = 23


class NotSaved(OutputError):
    """What lies on the disk is not what was in memory."""

    exit_code = 24


class MissingExtra(SutureError):
    """An optional dependency is not installed."""

    exit_code = 30


class Interrupted(SutureError):
    """Stopped by Ctrl-C or SIGTERM."""

    exit_code = 130


def told(differences: Sequence[Difference]) -> str:
    """Differences in words, one a line, each with what to do."""
    noun = "difference" if len(differences) == 1 else "differences"
    lines = [f"  {d.group}: {d.found}" + (f"\n    do: {d.do}" if d.do else "") for d in differences]
    return "\n".join([f"{len(differences)} {noun}:", *lines])
