"""The ledger that a training run leaves in each of its folders: what was trained, on what, up to where."""

from __future__ import annotations

from pathlib import Path

from suture.codec import from_json
from suture.errors import FormatError
from suture.formats.attempt import attempt
from suture.formats.jsonfile import read_json_object
from suture.values import Ledger

NAME = "suture_ledger.json"  # written last: a folder that has one is whole
VERSION = 1


def read_ledger(folder: Path) -> Ledger | None:
    """The ledger of a folder; None where there is none.

    Raises:
        InputError: it cannot be read.
        FormatError: it is not a ledger, or of another version.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    data = read_json_object(path)
    if data.get("version") != VERSION:
        raise FormatError(
            f"a ledger of version {data.get('version')!r}",
            where=str(path),
            expected=f"version {VERSION}",
            do="Use the version of suture that wrote it.",
        )
    ledger = from_json(Ledger, data)
    texts = [ledger.base.name, *(record.name for record in ledger.tensors), *ledger.optimizer]
    if not all(isinstance(text, str) for text in texts) or type(ledger.step) is not int:
        raise FormatError("names that are no text, or a step that is no number", where=str(path))
    return ledger


def ledger_or_problem(folder: Path) -> tuple[Ledger | None, str]:
    """The ledger of a folder, or what is wrong with the one that is there; None and nothing where there is none.

    For readers to whom the ledger is a hint: they go on without it.
    """
    bad: dict[str, str] = {}
    ledger = attempt(bad, NAME, lambda: read_ledger(folder))
    return ledger, bad.get(NAME, "")
