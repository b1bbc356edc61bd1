"""suture fix BASE ADAPTER [-o OUT]"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from suture.cli import _show
from suture.cli._command import Answer, Option
from suture.cli._options import Choices, Forward, Pair, Sources
from suture.cli._progress import busy
from suture.errors import UsageError

Out = Annotated[
    Path | None, Option("Folder for the repaired adapter. Without it nothing is written.", "OUT", short="-o")
]
Unsafe = Annotated[bool, Option("Make repairs too that assume what no file proves; each says what.")]
Separate = Annotated[bool, Option("Write tied ends that come apart as full matrices, which every tool merges rightly.")]


def fix(  # noqa: PLR0913 - one parameter a group of options
    pair: Pair,
    sources: Sources,
    choices: Choices,
    forward: Forward,
    *,
    out: Out = None,
    unsafe: Unsafe = False,
    separate: Separate = False,
) -> Answer:
    """Repair ADAPTER: names by one rule for the whole file, its config from its tensors. ADAPTER is never touched.

    Exit code 0: no error is left; 1: errors are left.
    """
    reading, options, settings = sources.reading(), choices.options(), forward.settings()
    if settings is not None and out is None:
        raise UsageError("--logits proves what was written", where="--logits", do="Name a folder with -o.")
    from suture import repairing

    with busy("reading values"):
        found = repairing.fix(
            pair.base,
            pair.adapter,
            out,
            options=options,
            reading=reading,
            unsafe=unsafe,
            separate=separate,
            logits=settings,
        )
    told = replace(found, after=tuple(f for f in found.after if f.code not in options.ignore))
    return Answer(told, partial(_show.fixed, found=told, base=pair.base), exit_code=0 if told.ok else 1)
