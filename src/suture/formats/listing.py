"""Which files of a model or adapter folder are weights, which belong to a trainer, and which travel with the model."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NoReturn

from suture.errors import FormatError, InputError
from suture.formats.files import inside

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")  # a trainer's folder, and its step

_WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".npz", ".pkl",
    ".pickle", ".ot", ".tflite",
)  # fmt: skip
_INDEX = re.compile(r"\.(safetensors|bin|h5|msgpack)\.index\.(\w+\.)?json$")
MERGE_RECORD = "suture_receipt.json"  # tells of the files beside it, and would be false of any copy
_TRAINER_STATE = re.compile(r"^(optimizer|rng_state|scheduler\.|scaler\.|training_args\.|trainer_state\.)")
_TRAINER_FOLDER = re.compile(rf"^({CHECKPOINT.pattern}|global_step\d+)$")
_ADAPTER = re.compile(r"^adapter_(config\.json$|model)")


def side_files(folder: Path) -> tuple[str, ...]:
    """Every regular file below the folder that travels with a model, sorted: config, tokenizer, templates, licence.

    Left out: weights of any kind and their indices, adapters, trainer state, the record of an earlier merge, hidden
    folders and symlinked folders.

    Raises:
        FormatError: such a file is a symlink to nothing or out of the folder.
    """
    return tuple(name for name in _walk(folder) if _travels(name) and _is_regular(folder, name))


def other_weights(folder: Path, used: Collection[str] = ()) -> tuple[str, ...]:
    """Weight files below the folder that are neither in `used`, nor the adapter itself, nor trainer state; sorted.

    Heads, projectors and new embeddings that a trainer saved beside an adapter are found this way, and stale shards.
    """
    return tuple(name for name in _walk(folder) if _is_weight(name) and name not in used and not is_private(name))


def file_names(folder: Path) -> list[str]:
    """Names of the files right in the folder, sorted."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    except OSError as error:
        _refuse(error)


def file_sizes(folder: Path) -> dict[str, int | None]:
    """Every file below the folder with its size in bytes, sorted; None for a link to nothing, a pipe or a device.

    Hidden folders and those of a trainer are left out.
    """
    sizes: dict[str, int | None] = {}
    for name in _walk(folder):
        try:
            info = (folder / name).stat()
        except OSError:
            sizes[name] = None
        else:
            sizes[name] = info.st_size if stat.S_ISREG(info.st_mode) else None
    return sizes


def is_private(name: str) -> bool:
    """Whether a file is an adapter's or a trainer's, and of no use to another model."""
    base = name.rpartition("/")[2]
    return bool(_ADAPTER.match(base) or _TRAINER_STATE.match(base))


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all files below the folder, relative to it, in sorted order, without hidden and trainer folders."""
    names = []
    for parent, subfolders, files in os.walk(folder, onerror=_refuse):
        subfolders[:] = [s for s in subfolders if not s.startswith(".") and not _TRAINER_FOLDER.match(s)]
        names += [Path(parent, f).relative_to(folder).as_posix() for f in files]
    yield from sorted(names)


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"the folder cannot be listed: {error.strerror}", where=str(error.filename)) from error


def _is_weight(name: str) -> bool:
    return name.lower().endswith(_WEIGHT_SUFFIXES)


def _travels(name: str) -> bool:
    return not (_is_weight(name) or is_private(name) or _INDEX.search(name) or name == MERGE_RECORD)


def _is_regular(folder: Path, name: str) -> bool:
    path = inside(folder, name)
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        if path.is_symlink():
            do = "Download the file again, or remove the link."
            raise FormatError("a symlink to nothing", where=str(path), do=do) from error
        raise InputError(f"cannot be looked at: {error.strerror}", where=str(path)) from error
