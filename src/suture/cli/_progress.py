"""Progress on stderr: bytes, speed and time left, stage by stage; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from suture.cli import _output

if TYPE_CHECKING:
    from suture.pipeline import Progress


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """A moving sign with a word on what is being done, for work whose length is not known."""
    if not sys.stderr.isatty():
        yield
        return
    with _output.terminal(sys.stderr).status(doing):
        yield


@contextmanager
def shown() -> Iterator[Progress | None]:
    """A function that takes (stage, bytes since the last call, bytes in all) and draws a bar for each stage."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description:8}"),
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(compact=True),
    )
    display = bars.Progress(*columns, console=_output.terminal(sys.stderr), transient=True)
    tasks: dict[str, bars.TaskID] = {}

    def advance(stage: str, n_bytes: int, total: int) -> None:
        if stage not in tasks:
            display.start()
            tasks[stage] = display.add_task(stage, total=total)
        display.advance(tasks[stage], n_bytes)

    try:
        yield advance
    finally:
        display.stop()
