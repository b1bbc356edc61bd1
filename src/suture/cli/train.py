"""suture train RUN.yaml [FIELD=VALUE …]"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from suture.cli import _output, _training
from suture.cli._command import Answer, Argument, Option
from suture.errors import Interrupted

if TYPE_CHECKING:
    from suture.cli._output import Out
    from suture.values import Outcome

ConfigArgument = Annotated[Path, Argument("RUN.yaml", "The run: base, data, adapter, settings.")]
FieldsArgument = Annotated[
    tuple[str, ...], Argument("FIELD=VALUE", "Settings in the place of the file's: lr=1e-4 adapter.rank=32")
]
ContinueOption = Annotated[
    str | None, Option("Go on from an adapter; its config is inherited.", "ADAPTER", name="--continue")
]
InitOption = Annotated[bool, Option("Write an example with every setting to RUN.yaml, and end.")]


def train(
    config: ConfigArgument,
    fields: FieldsArgument = (),
    continue_from: ContinueOption = None,
    init: InitOption = False,
) -> Answer | None:
    """Train a LoRA adapter: audited before the first step, read back after every save, measured to the merge."""
    if init:
        from suture.training.example import write_example

        write_example(config)
        return Answer({"written": config}, partial(_written, path=config))
    from suture.training import run
    from suture.training.config import load

    settings = load(config, fields)
    with interruptible(settings.out), _training.Display() as display:
        found = run.train(settings, continue_from=continue_from, observer=display)
    return answer(found)


@contextmanager
def interruptible(run: Path) -> Iterator[None]:
    """A stop at once: outside of training, or asked for twice.

    Raises:
        Interrupted: it was stopped.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        begun = (run / "run.yaml").is_file()
        do = f"`suture resume {run}` goes on from the newest whole checkpoint." if begun else "Nothing was left behind."
        raise Interrupted("stopped", where=str(run), do=do) from error


def answer(found: Outcome) -> Answer | None:
    """The outcome of a run; of several processes, only the first has one to tell."""
    if not found.is_first:
        return None
    code = 3 if found.problems else 130 if found.adapter is None else 0
    return Answer(found, partial(_training.outcome, found=found, base=found.base), exit_code=code)


def _written(out: Out, path: Path) -> None:
    _output.line(out, f"written: {path}")
