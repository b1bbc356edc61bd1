"""suture plan BASE ADAPTER"""

from __future__ import annotations

from functools import partial

from suture.cli import _show
from suture.cli._command import Answer
from suture.cli._options import Choices, OptionalOut, Pair, Running, Sources
from suture.cli._progress import busy


def plan(pair: Pair, sources: Sources, choices: Choices, running: Running, *, out: OptionalOut = None) -> Answer:
    """Show what a merge would do: every decision, the operations, bytes, disk, memory and time. Writes nothing."""
    reading, options, how = sources.reading(), choices.options(), running.settings()
    from suture import pipeline

    with busy("reading headers" if out is None else "measuring"):
        found = pipeline.forecast(pair.base, pair.adapter, out, options=options, reading=reading, running=how)
    return Answer(found, partial(_show.plan, found=found))
