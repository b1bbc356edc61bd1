"""Descriptions kept on disk: a second look at the same model needs neither torch nor Transformers.

A file is the sha256 of what follows, a newline, and JSON. One that cannot be read or written costs time, never more.
Files that were not used for longest go when there are too many.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture import __version__, codec
from suture.errors import FormatError
from suture.home import cache_folder
from suture.values import Arch, Json, Part, TensorInfo

# To be raised when descriptions change although the versions and the inputs do not.
SCHEMA = 1

# Descriptions have 0.1 to 3 MB.
MAX_FILES = 200
MAX_BYTES = 200 * 1024 * 1024

_log = logging.getLogger(__name__)


def key_of(config: Json, tensors: Mapping[str, TensorInfo]) -> str:
    """sha256 of all that a description depends on: config, names and shapes, and the versions that make it."""
    versions = [SCHEMA, __version__, _version("transformers")]
    digest = hashlib.sha256(codec.canonical({"config": config, "versions": versions}))
    digest.update("".join(f"\n{name} {tensors[name].shape}" for name in sorted(tensors)).encode())
    return digest.hexdigest()


def load(key: str) -> Arch | None:
    """The description kept under a key, or None when there is none that can be trusted."""
    try:
        path = _path(key)
        written = path.read_bytes()
        with contextlib.suppress(OSError):  # of a cache that may only be read
            os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        _log.warning("The cache of model descriptions cannot be read (%s); the model is described anew.", error)
        return None
    digest, _, body = written.partition(b"\n")
    if digest != _sha256(body):
        _log.warning("%s is damaged; the model is described anew.", path)
        return None
    try:
        return _unpacked(json.loads(body))
    except (FormatError, ValueError, TypeError, LookupError) as error:
        _log.warning("%s is not a model description (%s); the model is described anew.", path, error)
        return None


def save(key: str, arch: Arch) -> None:
    """Keep a description, whole or not at all."""
    body = json.dumps(_packed(arch), separators=(",", ":")).encode()
    temporary = None
    try:
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{key[:16]}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(_sha256(body) + b"\n" + body)
        temporary.replace(path)
        _prune(path)
    except (OSError, RuntimeError) as error:
        _log.warning("The cache of model descriptions cannot be written (%s).", error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _prune(newest: Path) -> None:
    """Remove what was used longest ago, and what a killed process left, until the rest fits."""
    found: list[tuple[int, str, int]] = []
    for entry in os.scandir(newest.parent):
        with contextlib.suppress(FileNotFoundError):  # another process removes them too
            status = entry.stat(follow_symlinks=False)
            found.append((status.st_mtime_ns, entry.name, status.st_size))
    n_files, n_bytes = len(found), sum(size for _, _, size in found)
    for _, name, size in sorted(found):
        if n_files <= MAX_FILES and n_bytes <= MAX_BYTES:
            return
        if name != newest.name:
            newest.with_name(name).unlink(missing_ok=True)
            n_files, n_bytes = n_files - 1, n_bytes - size


def _packed(arch: Arch) -> dict[str, Any]:
    """JSON data with a Part as [tensor, number of the parameter, …]: there can be tens of thousands."""
    number = {name: i for i, name in enumerate(arch.params)}
    rows = [(p.tensor, number[p.param], *_cuts(p)) for p in arch.parts]
    return {**codec.to_json(dataclasses.replace(arch, parts=())), "parts": rows}


def _cuts(part: Part) -> tuple[Any, ...]:
    cuts = (part.index, part.transpose, part.rows)
    return () if cuts == ((), False, None) else cuts


def _unpacked(data: dict[str, Any]) -> Arch:
    arch = codec.from_json(Arch, {**data, "parts": []})
    names = list(arch.params)
    return dataclasses.replace(arch, parts=tuple([_part(names, *row) for row in data["parts"]]))


def _part(names: list[str], tensor: str, param: int, *cuts: Any) -> Part:
    if not cuts:
        return Part(tensor, names[param])
    index, transpose, rows = cuts
    pairs = tuple([i if isinstance(i, int) else (i[0], i[1]) for i in index])
    return Part(tensor, names[param], pairs, transpose, None if rows is None else (rows[0], rows[1]))


def _sha256(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _path(key: str) -> Path:
    return cache_folder() / "arch" / f"{key}.json"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
