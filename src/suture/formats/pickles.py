"""Pickled weights → safetensors, in a private folder, without running the pickle's code. The only writer of formats."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suture.errors import FormatError, InputError
from suture.formats.dtypes import DTYPES
from suture.formats.files import inside, quoted
from suture.formats.fingerprint import file_sha256
from suture.formats.listing import ADAPTER_CONFIG, other_weights, side_files
from suture.home import cache_folder

if TYPE_CHECKING:
    import torch

COPIES = "suture_copies"  # key of the header's metadata that says which tensors were one in the pickle
MAX_GROWTH = 8  # times the pickle's size: shared tensors are written once a name

_TORCH_NAMES = frozenset(d.torch_name for d in DTYPES.values())

_log = logging.getLogger(__name__)
# What a malformed pickle makes torch.load raise.
_LOAD_ERRORS = (
    pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError,
    OSError, AssertionError, OverflowError, MemoryError, ImportError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def converted(folder: Path, names: Iterable[str]) -> Path:
    """A private copy of a model or adapter folder in which the pickled weights are safetensors.

    Tensors are read by torch's weights-only unpickler. Tensors that share memory are written once each. The result is
    kept by the sha256 of its sources, so each pickle is converted once.

    Args:
        folder: the folder with the pickles.
        names: the pickles; pytorch_model-00001-of-00002.bin becomes model-00001-of-00002.safetensors.

    Raises:
        FormatError: a pickle is malformed, or holds something else than named tensors.
    """
    targets = {name: name.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors" for name in names}
    small = [name for name in (*side_files(folder), ADAPTER_CONFIG) if (folder / name).is_file()]
    others = other_weights(folder, targets)
    files = {name: file_sha256(inside(folder, name)) for name in (*targets, *small)}
    recipe = {"files": files, "others": others}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    target = cache_folder() / "pickles" / key
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{key[:16]}.", dir=target.parent, ignore_cleanup_errors=True) as made:
            staging = Path(made, "folder")
            for name in small:
                _copy(inside(folder, name), staging / name)
            for name in others:
                # Only the names matter: what lies beside the weights must stay visible in the copy.
                _parent(staging / name).symlink_to((folder / name).resolve())
            for source, name in targets.items():
                _convert(inside(folder, source), _parent(staging / name))
            _publish(staging, target)
    except OSError as error:
        raise InputError(
            f"converted weights cannot be written: {error.strerror or error}",
            where=str(target.parent),
            do="Free some space, or point SUTURE_CACHE at another folder.",
        ) from error
    return target


def _parent(path: Path) -> Path:
    """The same path, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, _parent(target))
    _flush(target)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _publish(staging: Path, target: Path) -> None:
    """One rename. Another process that was faster made the same folder, of the same sources."""
    try:
        staging.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _convert(source: Path, target: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = _load(source)
    copies = _copies(tensors)
    n_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
    if n_bytes > MAX_GROWTH * source.stat().st_size:
        raise FormatError(
            f"its tensors overlap so much that they would take {n_bytes} bytes", where=str(source), expected="weights"
        )
    metadata = {"format": "pt"}
    if copies:
        metadata[COPIES] = json.dumps(copies, sort_keys=True)
        _log.warning("%s: tensors that share memory were written apart: %s", source, quoted(copies))
    whole = {
        name: t.clone(memory_format=torch.contiguous_format) if name in copies else t.contiguous()
        for name, t in tensors.items()
    }
    try:
        save_file(whole, target, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    _flush(target)


def _load(path: Path) -> dict[str, torch.Tensor]:
    import torch

    _refuse_packed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on old pickles; what it cannot read, it raises
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except _LOAD_ERRORS as error:
        raise FormatError(
            f"the pickle cannot be read as weights: {quoted(error, 300)}",
            where=str(path),
            expected="a table of tensors, saved by torch.save",
            do="Do not use it unless you know who wrote it; convert it to safetensors yourself.",
        ) from error
    if not isinstance(state, dict):
        raise FormatError(f"the pickle holds a {type(state).__name__}", where=str(path), expected="a table of tensors")
    names = sorted(_checked_name(path, name) for name in state)
    return {name: _checked(path, name, state[name]) for name in names}


def _refuse_packed(path: Path) -> None:
    """Refuse an archive whose members torch.save did not write: it stores them as they are, one beside the other.

    A compressed member would be unpacked to any size, or read as if its packed bytes were values.
    """
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                return
            members = zipfile.ZipFile(file).infolist()
            n_bytes = os.fstat(file.fileno()).st_size
    except _LOAD_ERRORS as error:
        raise FormatError(f"not an archive as torch.save writes it: {quoted(error)}", where=str(path)) from error
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
    if packed or sum(m.file_size for m in members) > n_bytes:
        raise FormatError(
            f"the archive packs {quoted(packed[0])}" if packed else "the archive's members overlap",
            where=str(path),
            expected="members that are stored as they are, as torch.save writes them",
            do="Do not use it unless you know who wrote it; convert it to safetensors yourself.",
        )


def _checked_name(path: Path, name: Any) -> str:
    if not isinstance(name, str):
        # Not the key itself: nested tuples can take ages to print.
        raise FormatError(
            f"the pickle has a key of type {type(name).__name__}", where=str(path), expected="names of tensors"
        )
    return name


def _checked(path: Path, name: Any, value: Any) -> torch.Tensor:
    import torch

    where = f"{path}: {quoted(name)}"
    if not isinstance(value, torch.Tensor):
        raise FormatError(f"a {type(value).__name__}", where=where, expected="a tensor")
    dtype = str(value.dtype).removeprefix("torch.")
    if value.layout != torch.strided or value.is_quantized or dtype not in _TORCH_NAMES:
        raise FormatError(f"a {value.layout} tensor of {value.dtype}", where=where, expected="a plain tensor")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise FormatError("a tensor larger than its memory", where=where, expected="a plain tensor")
    return value.detach()


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Tensors whose memory an earlier one (by name) has too → that one's name."""
    owners: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.untyped_storage().nbytes():
            owner = owners.setdefault(tensor.untyped_storage().data_ptr(), name)
            if owner != name:
                shared[name] = owner
    return shared
