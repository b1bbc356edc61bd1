"""suture check BASE [ADAPTER]"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from suture.cli import _show
from suture.cli._command import Answer, Option
from suture.cli._options import Choices, Forms, OptionalAdapter, Sources, SubjectArgument
from suture.cli._progress import busy
from suture.errors import UsageError

if TYPE_CHECKING:
    from suture.checking import Checked
    from suture.cli._output import Show

Deep = Annotated[bool, Option("Read values too: NaN, untrained factors, sizes of updates, another base.")]
Select = Annotated[
    tuple[str, ...], Option("Tell of these rules only: M301, M3, key-unmatched. May be repeated.", "CODE")
]


def check(  # noqa: PLR0913 - one parameter a group of options
    subject: SubjectArgument,
    sources: Sources,
    choices: Choices,
    forms: Forms,
    *,
    adapter: OptionalAdapter = None,
    deep: Deep = False,
    select: Select = (),
) -> Answer:
    """Find all that is wrong with merging ADAPTER into BASE; with BASE alone, in a finished model or a training run.

    Exit code 0: no errors; 1: errors; 2: a wrong call; 10 and above: something cannot be read at all.
    """
    reading, options = sources.reading(), choices.of_bytes()
    from suture import checking

    selection = checking.Selection(select, choices.ignore)
    with busy("reading values" if deep else "reading headers"):
        found = checking.check_files(subject, adapter, options=options, reading=reading, deep=deep, selection=selection)
    n_errors = found.count("error")
    data = {
        "kind": found.kind,
        "findings": found.findings,
        "n_errors": n_errors,
        "n_warnings": found.count("warning"),
        "n_infos": found.count("info"),
        "layers": found.layers,
        "moves": found.moves,
    }
    show = _form(found, forms, subject, adapter)
    other = "--sarif" if forms.sarif else "--github" if forms.github else ""
    return Answer(data, show, exit_code=1 if n_errors else 0, other_form=other)


def _form(found: Checked, forms: Forms, base: str, adapter: str | None) -> Show:
    """How the findings are printed where --json was not asked for."""
    if forms.sarif and forms.github:
        raise UsageError("--sarif and --github are two forms of the same", do="Choose one of them.")
    if not forms.sarif and not forms.github:
        return partial(_show.checked, found=found, base=base, adapter=adapter)
    from suture import __version__, code_hosts

    if forms.sarif:
        log = code_hosts.sarif(found.findings, found.folders, __version__)
        return partial(_show.document, data=log)
    return partial(_show.lines, texts=code_hosts.github(found.findings, found.folders))
