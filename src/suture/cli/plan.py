"""suture plan BASE ADAPTER"""

from __future__ import annotations

from functools import partial

from suture.cli import _show
from suture.cli._command import Answer
from suture.cli._options import Choices, Pair, Sources


def plan(pair: Pair, sources: Sources, choices: Choices) -> Answer:
    """Show what a merge would do: every decision, the operations, bytes, disk and memory. Writes nothing."""
    reading, options = sources.reading(), choices.options()
    from suture import pipeline

    todo = pipeline.plan(pair.base, pair.adapter, options=options, reading=reading)
    return Answer(todo, partial(_show.plan, todo=todo))
