"""suture merge BASE ADAPTER -o OUT"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from suture.cli import _output, _progress, _show
from suture.cli._command import Answer
from suture.cli._options import Choices, Forward, OutOption, Pair, Running, Sources

if TYPE_CHECKING:
    from suture.values import Plan, Receipt, Verdict


@dataclass(frozen=True, slots=True)
class Merged:
    """What the command tells of a merge."""

    out: Path
    plan: Plan
    receipt: Receipt
    seconds: float
    full_verify: bool
    verdict: Verdict | None  # with --logits


def merge(pair: Pair, out: OutOption, sources: Sources, choices: Choices, running: Running, forward: Forward) -> Answer:
    """Merge ADAPTER into BASE. OUT appears whole and verified, or not at all."""
    reading, options, settings = sources.reading(), choices.options(), forward.settings()
    from suture import pipeline

    plans: list[Plan] = []

    def announce(plan: Plan) -> None:
        plans.append(plan)
        _show.growth(_output.console(stderr=True), plan)
        _show.slow_kernel(_output.console(stderr=True))

    start, how = time.monotonic(), running.settings(announce)
    with _progress.shown() as progress:
        receipt = pipeline.merge(
            pair.base, pair.adapter, out, options=options, reading=reading, running=how, progress=progress
        )
    seconds = time.monotonic() - start
    found = None
    if settings is not None:
        found = pipeline.verify(pair.base, pair.adapter, out, options=options, reading=reading, logits=settings)
    done = Merged(out, plans[0], receipt, seconds, how.full_verify, found)
    data = {"out": out, "receipt": receipt, "seconds": seconds, "verdict": found}
    return Answer(data, partial(_show.merged, found=done), exit_code=0 if found is None or found.ok else 3)
