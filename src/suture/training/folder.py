"""A run's folder: where its files lie, and the only writes that are Suture's own."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from suture.errors import InputError, OutputError, OutputExists, OutputLocked
from suture.execute.disk import sync_path
from suture.formats import ledger
from suture.formats.listing import CHECKPOINT

CONFIG = "run.yaml"
METRICS = "metrics.jsonl"
AUDIT = "audit.json"
OUTCOME = "outcome.json"
CURVE = "loss.svg"
START = "start"  # the adapter as it was before the first step
ADAPTER = "adapter"  # the result
LOCK = ".lock"
LEDGER = ledger.NAME


def claim(run: Path) -> None:
    """Make a folder for a new run.

    Raises:
        OutputExists: there are files in it.
    """
    if run.exists() and (not run.is_dir() or any(path.name != LOCK for path in run.iterdir())):
        raise OutputExists(
            "the run folder has files",
            where=str(run),
            expected="a new or empty folder",
            do="Name another one in `out`, or go on with this run: suture resume.",
        )
    run.mkdir(parents=True, exist_ok=True)


def unclaim(run: Path) -> None:
    """Take back the folder of a run that has not begun: it was empty, and has no settings yet."""
    if not (run / CONFIG).exists():
        shutil.rmtree(run)


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """What the disk refuses inside is told as such.

    Raises:
        OutputError: it refused something.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"the disk refused: {error}",
            where=str(run),
            expected="room, and the right to write",
            do="Repair that; `suture resume` goes on from the newest whole checkpoint, if there is one.",
        ) from error


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run's lock: one process (or one group of processes, by its first) writes a run.

    Raises:
        OutputLocked: another process has it.
    """
    descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputLocked(
                "another process trains in this folder", where=str(run), do="Wait for it, or stop it."
            ) from error
        yield
    finally:
        os.close(descriptor)


def put(path: Path, text: str) -> None:
    """Write a file whole or not at all: beside its place, to the disk, then renamed."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_path(path.parent)


def put_json(path: Path, data: Any) -> None:
    """Write JSON data whole or not at all. Numbers that are not finite, which JSON does not have, become null."""
    put(path, json.dumps(_finite(data), indent=1, allow_nan=False) + "\n")


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Add a line of JSON to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_finite(data)) + "\n")


def put_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines whole or not at all."""
    put(path, "".join(json.dumps(line) + "\n" for line in lines))


def lines_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines up to the step that a run resumes from.

    A line that a crash has cut off is the last one, and is left out.
    """
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            data = json.loads(line)
        except ValueError:
            break
        if data["step"] <= step:
            kept.append(data)
    return kept


def checkpoints(run: Path) -> tuple[Path, ...]:
    """Checkpoint folders, oldest first."""
    found = [(int(m[1]), p) for p in run.iterdir() if p.is_dir() and (m := CHECKPOINT.fullmatch(p.name))]
    return tuple(path for _, path in sorted(found))


def checkpoint(run: Path, step: int) -> Path:
    """The folder of a checkpoint."""
    return run / f"checkpoint-{step}"


def rotate(run: Path, keep: int, spare: Path | None) -> None:
    """Delete unfinished checkpoints, and the oldest of the others, so that `keep` are left; never `spare`."""
    found = checkpoints(run)
    whole = [path for path in found if (path / LEDGER).is_file()]
    others = [path for path in whole if path != spare]
    for path in (*(path for path in found if path not in whole), *others[: max(0, len(others) - keep)]):
        remove(path)


def remove(folder: Path) -> None:
    """Delete a folder of a run; one rename first, so that a crash leaves nothing that looks whole."""
    doomed = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
        shutil.rmtree(doomed)


def publish(staged: Path, folder: Path) -> None:
    """Give a finished folder its name."""
    remove(folder)
    staged.rename(folder)
    sync_path(folder.parent)


def sync(folder: Path) -> None:
    """Wait until all files of a folder are on the disk, with their names."""
    for path in (*folder.iterdir(), folder):
        sync_path(path)


def require_run(run: Path) -> None:
    """Refuse a folder that no run has written.

    Raises:
        InputError: it has no run.yaml.
    """
    if not (run / CONFIG).is_file():
        raise InputError(
            f"there is no {CONFIG}",
            where=str(run),
            expected="the folder of a run (`out` of its config)",
            do="suture train starts one.",
        )
