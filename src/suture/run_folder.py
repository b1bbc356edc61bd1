"""A trainer's checkpoint as it is: adapter, optimiser, and what the trainer wrote of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from suture.errors import InputError
from suture.formats import TensorReader, file_sha256, read_adapter, stored_sha256
from suture.formats.attempt import attempt
from suture.formats.files import inside
from suture.formats.jsonfile import read_json_object
from suture.formats.kind import TRAINER_STATE, checkpoint_number, checkpoints_below
from suture.formats.ledger import NAME as LEDGER
from suture.formats.ledger import read_ledger
from suture.formats.listing import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from suture.formats.sameness import same_bytes
from suture.values import Adapter, Json, Ledger

RESULT = "adapter"  # where `suture train` puts what came out


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What the files of a trainer's checkpoint say."""

    folder: Path
    files: Mapping[str, int]  # every file right in the folder → its size in bytes
    state: Json  # of trainer_state.json; empty where there is none
    adapter: Adapter | None  # None where the checkpoint holds a whole model
    ledger: Ledger | None
    unreadable: Mapping[str, str] = field(default_factory=dict)  # file → what is wrong with it
    folders: tuple[str, ...] = ()  # right in the folder, sorted
    number: int | None = None  # of checkpoint-N; None for the adapter that came out at the end
    elsewhere: frozenset[str] = frozenset()  # files and folders, by name, in the other checkpoints of the run
    previous: int | None = None  # the number of the checkpoint before this one
    still: tuple[str, ...] | None = None  # tensors equal to those of `previous`; None when values were not read
    sha256: Mapping[str, str] | None = None  # of the adapter's tensors, where there is a ledger; None as above
    file_sha256: Mapping[str, str] | None = None  # of the files that the ledger names; None as above

    @property
    def weights(self) -> str:
        """The adapter's file, relative to this folder; one of another name than "default" lies in a subfolder."""
        return self.beside(self.adapter.file) if self.adapter else ADAPTER_WEIGHTS

    def beside(self, name: str) -> str:
        """A file beside the adapter's weights, relative to this folder."""
        inner = self.adapter.folder.relative_to(self.folder).as_posix() if self.adapter else "."
        return name if inner == "." else f"{inner}/{name}"


def read_run_folder(path: str | Path, *, deep: bool = False) -> tuple[RunFolder, ...]:
    """The checkpoints in a folder, by step, then the adapter that came out; or the one checkpoint that it is.

    Args:
        path: checkpoint-N, or the folder of a run.
        deep: read the adapters' values too: what did not change since the checkpoint before, and the ledger's hashes.

    Raises:
        InputError: there is no such folder, it cannot be listed, or there is no checkpoint in it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder), expected="a checkpoint or the folder of a run")
    if checkpoint_number(folder) is not None or ((folder / TRAINER_STATE).is_file() and not checkpoints_below(folder)):
        return (_read(folder, deep=deep),)
    runs = [_read(place, deep=deep) for place in checkpoints_below(folder)]
    if not runs:
        expected = f"checkpoint-N folders, or {TRAINER_STATE}"
        raise InputError("there is no trainer's checkpoint", where=str(folder), expected=expected)
    linked = _linked(runs, deep=deep)
    finals = [place for place in (folder, folder / RESULT) if (place / ADAPTER_CONFIG).is_file()]
    return (*linked, *(_read(place, deep=deep, is_final=True) for place in finals))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"the folder cannot be listed: {error.strerror}", where=str(folder)) from error


def _read(folder: Path, *, deep: bool, is_final: bool = False) -> RunFolder:
    places = [place for place in _listed(folder) if not place.name.startswith(".")]
    files = {place.name: place.stat().st_size for place in places if place.is_file()}
    folders = tuple(place.name for place in places if place.is_dir())
    bad = {place.name: "a link to nothing" for place in places if not place.is_file() and not place.is_dir()}
    adapter = attempt(bad, ADAPTER_WEIGHTS, partial(_adapter, folder, files, folders, is_final))
    state = attempt(bad, TRAINER_STATE, partial(_json, folder, TRAINER_STATE)) if TRAINER_STATE in files else None
    run = RunFolder(
        folder=folder,
        files=files,
        state=state or {},
        adapter=adapter,
        ledger=attempt(bad, LEDGER, partial(read_ledger, folder)),
        unreadable=bad,
        folders=folders,
        number=None if is_final else checkpoint_number(folder),
    )
    return _with_hashes(run) if deep else run


def _adapter(folder: Path, files: Iterable[str], folders: Sequence[str], is_final: bool) -> Adapter | None:
    """The adapter in a checkpoint, or in its one subfolder that has one; None where there is a whole model."""
    names = set(files)
    inner = [
        name
        for name in folders
        if (folder / name / ADAPTER_CONFIG).is_file() and checkpoint_number(folder / name) is None
    ]
    if ADAPTER_CONFIG in names or ADAPTER_WEIGHTS in names:
        return read_adapter(folder, name="default" if ADAPTER_CONFIG in names else None)
    return read_adapter(folder, name=inner[0]) if len(inner) == 1 and not is_final else None


def _json(folder: Path, name: str) -> dict[str, Any]:
    return read_json_object(inside(folder, name))


def _with_hashes(run: RunFolder) -> RunFolder:
    """The same, with hashes of what its ledger names."""
    if run.ledger is None:
        return replace(run, sha256={}, file_sha256={})
    names = [name for name in run.ledger.files if name in run.files]
    hashes = {name: file_sha256(inside(run.folder, name)) for name in names}
    return replace(run, sha256=_tensor_hashes(run.adapter) if run.adapter else {}, file_sha256=hashes)


def _tensor_hashes(adapter: Adapter) -> dict[str, str]:
    with TensorReader(adapter.folder) as reader:
        return {name: stored_sha256(reader, tensor) for name, tensor in sorted(adapter.tensors.items())}


def _linked(runs: Sequence[RunFolder], *, deep: bool) -> list[RunFolder]:
    """Checkpoints that know of each other: the files of the others, and what has not changed since the one before."""
    linked = [
        replace(
            run, elsewhere=frozenset(n for other in runs if other is not run for n in (*other.files, *other.folders))
        )
        for run in runs
    ]
    after = [
        replace(run, previous=before.number, still=_still(before, run) if deep else None)
        for before, run in pairwise(linked)
    ]
    return [*linked[:1], *after]


def _still(before: RunFolder, run: RunFolder) -> tuple[str, ...]:
    """Tensors of a checkpoint that have the same bytes in the one before it."""
    if before.adapter is None or run.adapter is None:
        return ()
    old, new = before.adapter.tensors, run.adapter.tensors
    with TensorReader(before.adapter.folder) as left, TensorReader(run.adapter.folder) as right:
        return tuple(name for name in sorted(new) if name in old and same_bytes(left, old[name], right, new[name]))
