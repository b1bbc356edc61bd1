"""The verifier's own way to the bytes: headers parsed here, bytes read here, values as float64.

It shares no code with the reader that the merge uses, so that one mistake cannot hide in both.
"""

from __future__ import annotations

import errno
import filecmp
import json
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from suture.errors import InputError, SutureError
from suture.values import Json, TensorInfo, View

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the format
PIECE_BYTES = 1 << 22
KEPT_BYTES = 1 << 23
MIN_KEPT = 4  # the factors of both products of a layer of experts, which take turns
BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
# What says nothing about a file, but that this machine cannot read it now.
FAILURES = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the weight files of a folder hold, as a loader of Transformers would choose them.

    `problems` names everything that is malformed; tensors of a malformed file are absent from `tensors`.
    """

    tensors: Mapping[str, TensorInfo]
    files: tuple[str, ...]
    index: Json | None
    problems: tuple[str, ...]


def read_folder(folder: Path, planned: Iterable[str] = ()) -> Stored:
    """The headers of a model folder. A malformed file is told in `problems`, never raised.

    Args:
        planned: weight files to look for where the folder has none of the usual names.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder), expected="a folder with a merged model")
    problems: list[str] = []
    index = _read_index(folder, problems)
    if (folder / SINGLE).is_file():
        files: tuple[str, ...] = (SINGLE,)
    elif index is not None:
        names = {str(name) for name in index["weight_map"].values()}
        files = tuple(sorted(n for n in names if _is_plain(n, problems)))
    else:
        files = tuple(n for n in sorted(planned) if (folder / n).is_file())
        problems += [] if files else [f"neither {SINGLE} nor {INDEX}"]
    tensors: dict[str, TensorInfo] = {}
    for name in files:
        for tensor in _read_header(folder, name, problems):
            if tensor.name in tensors:
                problems.append(f"{name}: {tensor.name} is also in {tensors[tensor.name].file}")
            tensors[tensor.name] = tensor
    return Stored(tensors, files, index, tuple(problems))


def read_json(path: Path) -> Json | None:
    """A JSON object, or None when the file is absent, malformed, or something else."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        require_sound(path, error)
        return None
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _read_index(folder: Path, problems: list[str]) -> Json | None:
    if not (folder / INDEX).is_file():
        return None
    index = read_json(folder / INDEX)
    if index is None or not isinstance(index.get("weight_map"), dict):
        problems.append(f"{INDEX}: not an index")
        return None
    return index


def _is_plain(name: str, problems: list[str]) -> bool:
    if re.fullmatch(r"[^/\\\0]+\.safetensors", name):
        return True
    problems.append(f"{INDEX}: {name!r} is no file of this folder")
    return False


def _read_header(folder: Path, name: str, problems: list[str]) -> list[TensorInfo]:
    try:
        with (folder / name).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")  # noqa: TRY301 - told below
            entries = json.loads(file.read(length), object_pairs_hook=_unique)
        return _tensors(name, entries, begin=8 + length, size=size)
    except (OSError, ValueError, RecursionError) as error:
        require_sound(folder / name, error)
        problems.append(f"{name}: {error}")
        return []


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that is there twice")
    return found


def _tensors(file: str, entries: object, *, begin: int, size: int) -> list[TensorInfo]:
    """The tensors of one header; they must fill the rest of the file without gap or overlap."""
    if not isinstance(entries, dict):
        raise ValueError("the header is not an object")  # noqa: TRY004 - a malformed file, told as the others
    tensors = [_tensor(file, k, v, begin) for k, v in entries.items() if k != "__metadata__"]
    at = begin
    for tensor in sorted(tensors, key=lambda t: (t.begin, t.end)):
        if tensor.begin != at:
            raise ValueError(f"{tensor.name} begins at byte {tensor.begin}, not at {at}")
        at = tensor.end
    if at != size:
        raise ValueError(f"the tensors end at byte {at}, the file at {size}")
    return tensors


def _tensor(file: str, name: str, entry: object, begin: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(first), int(last)]}:
            pass
        case _:
            raise ValueError(f"{name}: not the entry of a tensor")
    if dtype not in BITS or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"{name}: dtype {dtype!r}, shape {shape!r}")
    if last - first != math.prod(shape) * BITS[dtype] // 8 or first < 0:
        raise ValueError(f"{name}: {last - first} bytes for {dtype} {shape}")
    return TensorInfo(name, dtype, tuple(shape), file, begin + first, begin + last)


def raw(folder: Path, tensor: TensorInfo, start: int, stop: int) -> Bytes:
    """Bytes start:stop of a tensor.

    Raises:
        InputError: the file is gone or too short.
    """
    path = folder / tensor.file
    data = np.empty(stop - start, np.uint8)
    view, n_read = data.data, 0
    try:
        with path.open("rb", buffering=0) as file:  # unlike numpy.fromfile, it tells a failing disk from a short file
            while n_read < len(data) and (
                n := os.preadv(file.fileno(), [view[n_read:]], tensor.begin + start + n_read)
            ):
                n_read += n
    except OSError as error:
        raise InputError(f"{tensor.name} cannot be read: {error.strerror}", where=str(path)) from error
    if n_read != len(data):
        raise InputError(
            f"{tensor.name} is cut short at byte {tensor.begin + start + n_read}",
            where=str(path),
            expected=f"a file of at least {tensor.end} bytes, as its header says",
            do="Get the file again.",
        )
    return data


def raw_into(folder: Path, tensor: TensorInfo, start: int, buffer: Any) -> None:
    """Fill a buffer with bytes of a tensor, from `start` on. Raises InputError as `raw` does."""
    view = np.frombuffer(buffer, np.uint8)
    view[:] = raw(folder, tensor, start, start + len(view))


class Kept:
    """Whole tensors that were read last, up to KEPT_BYTES: those of fused experts hold the factors of many tensors."""

    def __init__(self) -> None:
        self._tensors: OrderedDict[tuple[Path, str], Bytes] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def whole(self, folder: Path, tensor: TensorInfo) -> Bytes:
        """All bytes of a tensor. Raises InputError as `raw` does."""
        key = folder / tensor.file, tensor.name
        with self._lock:
            if key not in self._tensors:
                self._tensors[key] = raw(folder, tensor, 0, tensor.n_bytes)
                self._n_bytes += tensor.n_bytes
            self._tensors.move_to_end(key)
            while len(self._tensors) > MIN_KEPT and self._n_bytes > KEPT_BYTES:
                self._n_bytes -= self._tensors.popitem(last=False)[1].nbytes
            return self._tensors[key]


def floats(data: Bytes, dtype: str) -> Floats:
    """Stored bytes as float64: exact for every dtype of FLOATS.

    Raises:
        SutureError: the dtype is none of them.
    """
    return _widen(data.view(_storage(dtype)), dtype)


def _storage(dtype: str) -> str:
    if dtype not in FLOATS:
        raise SutureError(
            f"values of dtype {dtype} cannot be computed with",
            expected=", ".join(FLOATS),
            do="Dequantise the model first.",
        )
    return {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]


def _widen(stored: npt.NDArray[Any], dtype: str) -> Floats:
    if dtype == "BF16":
        stored = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float64)


def cut(data: Bytes, dtype: str, view: View) -> Floats:
    """The matrix or vector that a view cuts out of an adapter's tensor, given its bytes; only the cut is widened."""
    stored = data.view(_storage(dtype)).reshape(view.shape)
    part = stored[tuple(i if isinstance(i, int) else slice(*i) for i in view.index)]
    return _widen(np.ascontiguousarray(part.T if view.transpose else part), dtype)


def same_bytes(folder: Path, one: TensorInfo, other: TensorInfo) -> bool:
    """True when two tensors of a folder have the same bytes."""
    if one.n_bytes != other.n_bytes:
        return False
    pieces = ((at, min(at + PIECE_BYTES, one.n_bytes)) for at in range(0, one.n_bytes, PIECE_BYTES))
    return all(np.array_equal(raw(folder, one, a, b), raw(folder, other, a, b)) for a, b in pieces)


def beginning(path: Path, n_bytes: int | None) -> bytes | None:
    """The first bytes of a file, or all of it; None when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read() if n_bytes is None else file.read(n_bytes)
    except OSError as error:
        require_sound(path, error)
        return None


def same_file(one: Path, other: Path) -> bool:
    """True when both files exist and have the same bytes."""
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError as error:
        require_sound(one, error)
        return False


def require_sound(path: Path, error: Exception) -> None:
    """Refuse to judge a file by the failure of the machine that reads it.

    Raises:
        InputError: it is one.
    """
    if isinstance(error, OSError) and error.errno in FAILURES:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
