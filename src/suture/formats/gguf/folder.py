"""The private folder of a GGUF file: config.json, the tokenizer's files, and links to the file itself.

<cache>/gguf/<key>/<name of the file>/…, and beside it what the tensors are called. The key stands for the file as it is
on the disk now and for the versions that made the rest. A folder appears by one rename; those that were not used for
longest go when there are too many.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from suture.errors import FormatError, InputError
from suture.formats.files import GGUF_FOLDERS
from suture.formats.gguf.generated import Source, generate
from suture.formats.jsonfile import read_json_object
from suture.home import cache_folder

SCHEMA = 1  # to be raised when what is generated changes although the versions do not
MAX_FOLDERS = 16
IN_USE = 24 * 3600  # seconds: a folder asked for that shortly before the newest one is not removed

SUFFIX = ".gguf"
_TABLE = "tensors.json"
_PART = re.compile(r"-\d{5}-of-\d{5}$")


def link_name(path: Path) -> str:
    """What a file is called in its private folder."""
    return path.name if path.name.endswith(SUFFIX) else path.name + SUFFIX


def prepared(source: Source) -> tuple[Path, dict[str, Any]]:
    """The private folder of a model, and what is known of its tensors: made if it is not there yet.

    Raises:
        FormatError: the file makes no model that is known.
        InputError: the folder cannot be written.
    """
    root = cache_folder() / GGUF_FOLDERS
    target = root / _key(source.paths)
    try:
        if (table := _table(target)) is None:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=root, ignore_cleanup_errors=True) as made:
                table = _make(source, Path(made))
                _publish(Path(made, "done"), target)
            _prune(root, target)
        with contextlib.suppress(OSError):  # of a cache that may only be read
            os.utime(target)
    except OSError as error:
        raise InputError(
            f"what belongs to a GGUF file cannot be written: {error.strerror or error}",
            where=str(root),
            do="Free some space, or point SUTURE_CACHE at another folder.",
        ) from error
    return target / _folder_name(source.paths[0]), table


def _make(source: Source, made: Path) -> dict[str, Any]:
    """All of a private folder, in made/done."""
    folder, scratch = made / "done" / _folder_name(source.paths[0]), made / "scratch"
    folder.mkdir(parents=True)
    scratch.mkdir()
    for path in source.paths:
        (folder / link_name(path)).symlink_to(path.resolve())
    table = generate(source, folder, scratch)
    (made / "done" / _TABLE).write_text(json.dumps(table), encoding="utf-8")
    for path in (made / "done").rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    return table


def _table(target: Path) -> dict[str, Any] | None:
    """What is known of the tensors, if the folder is whole."""
    try:
        return read_json_object(target / _TABLE) if (target / _TABLE).is_file() else None
    except FormatError:
        shutil.rmtree(target, ignore_errors=True)
        return None


def _publish(made: Path, target: Path) -> None:
    """One rename. Another process that was faster made the same folder."""
    try:
        made.rename(target)
    except OSError:
        if _table(target) is None:
            raise


def _prune(root: Path, newest: Path) -> None:
    """Remove what was used longest ago, and what a killed process left; never what a process may be reading.

    The newest folder, just made, tells what time it is: as the file system counts, like the others' times.
    """
    found, now = [], newest.stat().st_mtime
    for entry in os.scandir(root):
        with contextlib.suppress(FileNotFoundError):  # another process removes them too
            found.append((entry.stat(follow_symlinks=False).st_mtime, entry.name))
    found.sort(reverse=True)
    for n_newer, (used, name) in enumerate(found):
        old = used < now - IN_USE and name != newest.name
        if old and (n_newer >= MAX_FOLDERS or name.startswith(".")):
            shutil.rmtree(root / name, ignore_errors=True)


def _key(paths: Iterable[Path]) -> str:
    """sha256 of where the files are, when they were changed, and the versions that matter."""
    facts: list[Any] = [SCHEMA, *(_version(name) for name in ("suture", "transformers", "tokenizers", "gguf"))]
    for path in paths:
        real = path.resolve()
        status = real.stat()
        facts.append([str(path.name), str(real), status.st_dev, status.st_ino, status.st_size])
        facts.append([status.st_mtime_ns, status.st_ctime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _folder_name(path: Path) -> str:
    """The file's name without its ending and its number."""
    return _PART.sub("", link_name(path).removesuffix(SUFFIX)).lstrip(".") or "model"
