"""What Suture says of a pair, and of a base on its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import suture
from suture.pipeline import Reading
from suture.values import Finding


def of_pair(base: Path, adapter: Path, reading: Reading | None = None) -> tuple[Finding, ...]:
    """All findings of a check that reads values."""
    return suture.check(base, adapter, reading=reading, deep=True)


def of_base(base: Path) -> tuple[Finding, ...]:
    """All findings on a finished model."""
    return suture.check(base, deep=True)


def loud(findings: Iterable[Finding]) -> list[Finding]:
    """Errors and warnings."""
    return [f for f in findings if f.severity != "info"]


def codes(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Codes of errors and warnings."""
    return tuple(sorted({f.code for f in loud(findings)}))
