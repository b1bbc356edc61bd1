"""suture verify BASE ADAPTER MERGED"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from suture.cli import _progress, _show
from suture.cli._command import Answer, Option
from suture.cli._options import Choices, Forward, MergedArgument, Pair, Sources

Full = Annotated[bool, Option("Recompute every row, instead of a sample of every tensor.")]


def verify(
    pair: Pair, merged: MergedArgument, sources: Sources, choices: Choices, forward: Forward, *, full: Full = False
) -> Answer:
    """Prove that MERGED is what BASE + ADAPTER gives, whatever tool merged it. Exit code 3: it is not.

    Without options for the merge those of the receipt in MERGED count, if it has one.
    """
    reading, settings = sources.reading(), forward.settings()
    options = choices.options() if choices != Choices() else None  # the receipt's
    from suture import pipeline

    with _progress.shown() as progress:
        verdict = pipeline.verify(
            pair.base,
            pair.adapter,
            merged,
            options=options,
            reading=reading,
            full=full,
            logits=settings,
            progress=progress,
        )
    return Answer(verdict, partial(_show.verdict, found=verdict), exit_code=0 if verdict.ok else 3)
