"""The ledger that a training run leaves in each of its folders: what was trained, on what, up to where."""

from __future__ import annotations

from pathlib import Path

from suture.codec import from_json
from suture.errors import FormatError
from suture.formats.jsonfile import read_json_object
from suture.values import Ledger

NAME = "suture_ledger.json"  # written last: a folder that has one is whole
VERSION = 1


def read_ledger(folder: Path) -> Ledger | None:
    """The ledger of a folder; None where there is none.

    Raises:
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
    return from_json(Ledger, data)
