"""suture resume RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from suture.cli import _training
from suture.cli._command import Answer, Argument
from suture.cli.train import answer, interruptible

RunArgument = Annotated[Path, Argument("RUN", "Folder of a run that was stopped.")]


def resume(run: RunArgument) -> Answer | None:
    """Go on with a run from its newest whole checkpoint: the same bytes as if it had not been stopped."""
    from suture.training import run as runs

    with interruptible(run), _training.Display() as display:
        found = runs.resume(run, observer=display)
    return answer(found)
