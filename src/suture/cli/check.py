"""suture check BASE ADAPTER"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from suture.cli import _show
from suture.cli._command import Answer
from suture.cli._options import Choices, Pair, Sources

Deep = Annotated[
    bool, typer.Option("--deep", help="Read the adapter's values too: NaN, untrained factors, another base.")
]


def check(pair: Pair, sources: Sources, choices: Choices, *, deep: Deep = False) -> Answer:
    """Find all that is wrong with merging ADAPTER into BASE. Exit code 0: clean, 1: errors."""
    reading, options = sources.reading(), choices.options()
    from suture import pipeline
    from suture.rules import ignorable

    findings = pipeline.check(pair.base, pair.adapter, options=options, reading=reading, deep=deep)
    errors = [f for f in findings if f.severity == "error" and not ignorable(f, options)]
    data = {
        "findings": findings,
        "n_errors": len(errors),
        "n_warnings": sum(f.severity == "warning" for f in findings),
    }
    show = partial(_show.findings, found=findings, ignored=options.ignore)
    return Answer(data, show, exit_code=1 if errors else 0)
