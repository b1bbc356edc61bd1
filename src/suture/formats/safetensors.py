"""The header of a safetensors file, read strictly: whatever this accepts, the file holds, byte for byte.

8 bytes   N, an unsigned little-endian integer
N bytes   JSON: {"name": {"dtype": …, "shape": […], "data_offsets": [begin, end]}, …, "__metadata__": {…}}
the rest  the tensors' bytes, without holes or overlaps
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suture.errors import FormatError
from suture.formats.dtypes import DTYPES
from suture.formats.files import OpenFile, inside, open_regular, quoted, read_exact
from suture.formats.jsonfile import parse_json_object
from suture.values import Shard, TensorInfo

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
MAX_AXES = 64
MAX_ITEMS = 2**63 - 1  # of an axis, and of all axes that are not empty

_AGAIN = "The file is cut or damaged. Download or write it again."
_FIELDS = {"dtype", "shape", "data_offsets"}
_OTHER_FORMATS = {
    b"version https://git-lfs": ("a Git LFS pointer, not the weights", "Run `git lfs pull` in the folder."),
    b"PK\x03\x04": ("a zip archive, as torch.save writes it", "Save the weights as safetensors."),
    b"GGUF": ("a GGUF file", "Use the safetensors weights of the model."),
    b"\x89HDF": ("an HDF5 file", "Use the safetensors weights of the model."),
    b"<": ("an HTML or XML page", "Download the file again; the server may have sent an error page."),
}


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's header says: its tensors, by offset, and the file as a shard."""

    tensors: tuple[TensorInfo, ...]
    shard: Shard


def read_header(folder: Path, name: str) -> Header:
    """The checked header of the file `name` below `folder`.

    Reads no more than the header, and allocates no more than the file's size allows.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is not what the format demands, or it lies outside the folder.
    """
    path = inside(folder, name)
    where = str(path)
    with open_regular(path) as file:
        raw = _read_json_bytes(file)
    table = parse_json_object(raw, where)
    metadata = _metadata(table.pop("__metadata__", {}), where)
    start = 8 + len(raw)
    tensors = sorted(
        (_tensor(key, entry, name, start, where) for key, entry in table.items()),
        key=lambda t: (t.begin, t.end, t.name),
    )
    _check_coverage(tensors, start, file.n_bytes, where)
    return Header(tuple(tensors), Shard(name, file.n_bytes, metadata))


def _read_json_bytes(file: OpenFile) -> bytes:
    where = str(file.path)
    beginning = bytearray(min(file.n_bytes, 32))
    read_exact(file, 0, beginning)
    _refuse_other_formats(bytes(beginning), where)
    if len(beginning) < 9:
        raise FormatError(f"the file has {file.n_bytes} bytes", where=where, expected="a header", do=_AGAIN)
    n_bytes = int.from_bytes(beginning[:8], "little")
    limit = min(MAX_HEADER_BYTES, file.n_bytes - 8)
    if n_bytes > limit:
        raise FormatError(
            f"the header claims {n_bytes} bytes", where=where, expected=f"at most {limit} in this file", do=_AGAIN
        )
    raw = bytearray(n_bytes)
    read_exact(file, 8, raw)
    if raw[:1] != b"{":
        raise FormatError("the header does not begin with '{'", where=where, expected="JSON", do=_AGAIN)
    return bytes(raw)


def _refuse_other_formats(beginning: bytes, where: str) -> None:
    for magic, (what, do) in _OTHER_FORMATS.items():
        # A header length can spell a short magic by chance; then '{' follows the eight bytes.
        if beginning.startswith(magic) and beginning[8:9] != b"{":
            raise FormatError(f"this is {what}", where=where, expected="a safetensors file", do=do)


def _metadata(value: Any, where: str) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise FormatError("__metadata__ is not a table of texts", where=where, expected="text for each key")
    return value


def _tensor(name: str, entry: Any, file: str, start: int, where: str) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        fields = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise _wrong(where, name, f"its entry has {quoted(fields)}", f"exactly {sorted(_FIELDS)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _wrong(where, name, f"the dtype is {quoted(dtype)}", f"one of {', '.join(DTYPES)}")
    if not _are_counts(shape) or len(shape) > MAX_AXES:
        raise _wrong(where, name, f"the shape is {quoted(shape)}", f"at most {MAX_AXES} integers from 0 to 2^63 - 1")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _wrong(where, name, f"the offsets are {quoted(offsets)}", "begin and end, in this order")
    n_bits = math.prod(shape) * DTYPES[dtype].bits
    n_bytes = offsets[1] - offsets[0]
    if n_bits != n_bytes * 8:
        # Not n_bits / 8: the product of 64 long axes is no float.
        size = f"{n_bits // 8}{('', '.25', '.5', '.75')[n_bits % 8 // 2]} bytes"
        raise _wrong(where, name, f"{n_bytes} bytes for {dtype} of shape {quoted(shape)}", size)
    if n_bits == 0 and math.prod(n for n in shape if n) > MAX_ITEMS:
        raise _wrong(where, name, f"the shape {quoted(shape)} overflows", "axes whose product fits in 63 bits")
    return TensorInfo(name, dtype, tuple(shape), file, start + offsets[0], start + offsets[1])


def _are_counts(value: Any) -> bool:
    # bool is a subclass of int, and `true` is no count.
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= MAX_ITEMS for n in value)


def _wrong(where: str, name: str, found: str, expected: str) -> FormatError:
    return FormatError(found, where=f"{where}: {quoted(name)}", expected=expected, do=_AGAIN)


def _check_coverage(tensors: Iterable[TensorInfo], start: int, n_bytes: int, where: str) -> None:
    """The tensors follow each other from the header's end to the file's end, without a hole or an overlap."""
    position = start
    for tensor in tensors:
        if tensor.begin != position:
            what = "overlaps the tensor before it" if tensor.begin < position else "leaves a hole before it"
            raise _wrong(where, tensor.name, f"it begins at byte {tensor.begin} and {what}", f"byte {position}")
        position = tensor.end
    if position != n_bytes:
        what = "is cut" if n_bytes < position else "has bytes that belong to no tensor"
        raise FormatError(
            f"the file {what}: it has {n_bytes} bytes", where=where, expected=f"{position} bytes", do=_AGAIN
        )
