"""Findings in the forms that code hosts read: SARIF 2.1.0, and annotations of a GitHub workflow.

SARIF: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
Annotations: https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from suture import pages
from suture.rules import RULES
from suture.values import Finding, Severity

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MAX_JSON_BYTES = 1 << 20  # of a file in which a line is looked for
NAMES = "surrogateescape"  # file names that are not UTF-8 keep their bytes
LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}
COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "notice"}


def sarif(findings: Sequence[Finding], folders: Sequence[Path], version: str) -> dict[str, Any]:
    """A SARIF log with one run: the rules that found something, with their pages, and every finding.

    Args:
        folders: that the findings' places are relative to, the first where a file is in none.
        version: of this program.
    """
    codes = sorted({f.code for f in findings})
    driver = {"name": "suture", "version": version, "rules": [_rule(code) for code in codes]}
    results = [_result(f, codes.index(f.code), folders) for f in findings]
    runs = [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": runs}


def github(findings: Iterable[Finding], folders: Sequence[Path]) -> list[str]:
    """One workflow command a finding, which GitHub shows beside the file."""
    lines = []
    for finding in findings:
        path, place, row = _location(finding.where, folders)
        text = f"{place}: {message(finding)}" if place else message(finding)
        title = _escaped(f"{finding.code} {finding.name}", in_property=True)
        at = f"file={_escaped(path, in_property=True)},line={row}"
        lines.append(f"::{COMMANDS[finding.severity]} {at},title={title}::{_escaped(text)}")
    return lines


def message(finding: Finding) -> str:
    """A finding as running text."""
    expected = f"\nExpected: {finding.expected}" if finding.expected else ""
    return f"{finding.found}{expected}" + (f"\nDo: {finding.do}" if finding.do else "")


def _rule(code: str) -> dict[str, Any]:
    rule = RULES[code]
    return {
        "id": code,
        "name": "".join(part.capitalize() for part in rule.name.split("-")),
        "shortDescription": {"text": rule.name.replace("-", " ")},
        "fullDescription": {"text": pages.summary(rule)},
        "help": {"text": pages.explain(code), "markdown": pages.explain(code)},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }


def _result(finding: Finding, index: int, folders: Sequence[Path]) -> dict[str, Any]:
    path, place, row = _location(finding.where, folders)
    physical = {"artifactLocation": {"uri": quote(path, errors=NAMES)}, "region": {"startLine": row}}
    location: dict[str, Any] = {"physicalLocation": physical}
    if place:
        location["logicalLocations"] = [{"fullyQualifiedName": place}]
    same = hashlib.sha256(f"{finding.code}\0{finding.where}".encode(errors=NAMES)).hexdigest()
    return {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": LEVELS[finding.severity],
        "message": {"text": message(finding)},
        "locations": [location],
        "partialFingerprints": {"placeOfFinding/v1": same},
    }


def _location(where: str, folders: Sequence[Path]) -> tuple[str, str, int]:
    """The file that a finding is in (from the current folder, if it lies below that), the place in it, and its line."""
    first, _, place = where.partition(": ")
    for path in (folder / first for folder in folders if first):  # of an absolute path the folder is dropped
        if _is_there(path):
            return _from_here(path), place, _line(path, place)
    return _from_here(folders[0]), where, 1


def _line(path: Path, place: str) -> int:
    """The line of a JSON file that a field stands in; 1 for all else: code hosts want a line of every file."""
    field = re.split(r"[.:,\s]", place)[0]
    if path.suffix != ".json" or not field or not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return 1
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    fields = ((len(text) - len(text.lstrip()), n, text.lstrip()) for n, text in enumerate(lines, 1))
    indents = [(indent, n) for indent, n, text in fields if text.startswith(f'"{field}"')]
    return min(indents, default=(0, 1))[1]  # the outermost, if several levels have such a field


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a place that is no path can be too long for one
        return False


def _from_here(path: Path) -> str:
    """From the current folder, where it lies below that. Links stay: a code host knows them by their names."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def _escaped(text: str, *, in_property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if in_property else text
