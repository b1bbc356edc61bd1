"""Writes docs/rules.md and docs/failure_modes.md from the rules' own text and from the catalogue."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from suture import pages

DOCS = Path(__file__).parent
NOTE = "<!-- Written by docs/make_pages.py from the source. Change it there, then run `make docs`. -->"


def rules() -> str:
    """All rules: a table by family, then every page."""
    table = pages.rules()
    parts = ["# Rules", NOTE, INTRODUCTION.strip()]
    for family, rows in groupby(table, key=lambda row: row.family):
        lines = ["| code | name | severity | looks at | |", "|---|---|---|---|---|"]
        for row in rows:
            marks = ", ".join([*(["`--deep`"] if row.deep else []), *(["`suture fix`"] if row.fix else [])])
            link = f"[{row.code}](#{row.code.lower()}-{row.name})"
            lines.append(f"| {link} | {row.name} | {row.severity} | {', '.join(row.looks_at)} | {marks} |")
        parts.append(f"## {family[0].upper()}{family[1:]}\n\n" + "\n".join(lines))
    for row in table:
        modes = ", ".join(f"[{mode}](failure_modes.md)" for mode in row.modes)
        page = pages.explain(row.code).replace("\n## ", "\n#### ").replace("# ", "### ", 1).strip()
        parts.append(page + (f"\n\nFailure modes: {modes}" if modes else ""))
    return "\n\n".join(parts) + "\n"


def failure_modes() -> str:
    """Every known way in which adapters go wrong, and what stands against it."""
    lines = ["| | what goes wrong | rules | tests of the guarantee | what is left |", "|---|---|---|---|---|"]
    for row in pages.modes():
        names = {rule.code: rule.name for rule in pages.rules()}
        codes = ", ".join(f"[{code}](rules.md#{code.lower()}-{names[code]})" for code in row.rules)
        tests = ", ".join(f"`{test}`" for test in row.tests)
        lines.append(f"| {row.code} | {row.title} | {codes} | {tests} | {row.reason} |")
    return "\n\n".join(["# Known ways in which adapters go wrong", NOTE, MODES.strip(), "\n".join(lines)]) + "\n"


INTRODUCTION = """
Each rule finds one thing that goes wrong. `suture check BASE ADAPTER` runs those that look at a *pair*, `suture check
MODEL` those for a finished *model*, `suture check RUN` those for a trainer's checkpoints (*run*), and
`suture.check(model)` those for a PeftModel in memory (*live*). Rules marked `--deep` read values, all others headers
and configs alone. A merge runs the rules on the pair first, and stops at every error.

Choose with `--select` and `--ignore`, which take codes (`M301`), beginnings of codes (`M3`) and names
(`key-unmatched`). `--json`, `--sarif` and `--github` print for programs, code hosts and workflows. `suture explain
CODE` prints a page of this file.
"""

MODES = """
What is known to go wrong between training an adapter and serving the merged model, with what stands against each:
rules that find it, guarantees that make it impossible in Suture's own merges and runs (each with the test, below
`tests/`, that fails when it is broken), or the reason why no tool that looks at files can tell. `suture rules
--modes` prints this table.
"""


if __name__ == "__main__":
    (DOCS / "rules.md").write_text(rules(), encoding="utf-8")
    (DOCS / "failure_modes.md").write_text(failure_modes(), encoding="utf-8")
