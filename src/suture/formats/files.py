"""Opening files that somebody else wrote: regular files only, inside their folder only, read exactly."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from suture.errors import FormatError, InputError
from suture.home import cache_folder

Buffer: TypeAlias = bytearray | memoryview | npt.NDArray[Any]

# A FIFO would block open() for ever without O_NONBLOCK; regular files ignore the flag.
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
GGUF_FOLDERS = "gguf"  # below the cache: private folders, whose links lead to GGUF files
_MAX_READ = 1 << 30  # one system call cannot move more than 2 GiB


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file, open for reading: its path, descriptor, and size when it was opened."""

    path: Path
    fd: int
    n_bytes: int


def quoted(name: object, limit: int = 120) -> str:
    """A name from a file, safe to print: in quotes, unprintable characters escaped, cut after `limit` characters."""
    text = str(name)
    return repr(text if len(text) <= limit else text[:limit] + "…")


def open_file(path: Path) -> OpenFile:
    """Open a regular file for reading; the caller closes `fd`. Raises InputError for anything else."""
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:
        raise InputError(f"the file cannot be opened: {_reason(error)}", where=str(path)) from error
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise InputError("not a regular file", where=str(path), expected="a file, not a folder, pipe or device")
    return OpenFile(path, fd, info.st_size)


@contextmanager
def open_regular(path: Path) -> Iterator[OpenFile]:
    """`open_file`, closed at the end of the block."""
    file = open_file(path)
    try:
        yield file
    finally:
        os.close(file.fd)


def read_exact(file: OpenFile, offset: int, buffer: Buffer, *, tensor: str = "") -> None:
    """Fill `buffer` from `offset` on. Raises InputError, naming file and tensor, if the file has not as many bytes."""
    view = bytes_of(buffer)
    done = 0
    while done < len(view):
        try:
            n_read = os.preadv(file.fd, [view[done : done + _MAX_READ]], offset + done)
        except (OSError, OverflowError) as error:
            raise InputError(f"cannot be read: {_reason(error)}", where=_where(file, tensor)) from error
        if n_read == 0:
            raise InputError(
                f"the file ends at byte {offset + done}",
                where=_where(file, tensor),
                expected=f"{len(view)} bytes from byte {offset} on",
                do="The file was cut or replaced. Download it again.",
            )
        done += n_read


def read_whole(path: Path, limit: int) -> bytes:
    """All bytes of a file.

    Raises:
        InputError: the file cannot be read.
        FormatError: it has more than `limit` bytes.
    """
    with open_regular(path) as file:
        if file.n_bytes > limit:
            raise FormatError(f"the file has {file.n_bytes} bytes", where=str(path), expected=f"at most {limit} bytes")
        raw = bytearray(file.n_bytes)
        read_exact(file, 0, raw)
    return bytes(raw)


def read_lines(path: Path, limit: int) -> str:
    """The text of a UTF-8 file, with one newline at each end of a line. Raises what `read_whole` does."""
    try:
        text = read_whole(path, limit).decode("utf-8")
    except UnicodeError as error:
        raise FormatError(f"not UTF-8 text: {error}", where=str(path)) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _where(file: OpenFile, tensor: str) -> str:
    return f"{file.path}: {quoted(tensor)}" if tensor else str(file.path)


def bytes_of(buffer: Buffer) -> memoryview:
    """The memory of a buffer, byte by byte."""
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise ValueError("a C-contiguous array can be filled, this one is strided")
        buffer = buffer.reshape(-1).view(np.uint8).data
    return memoryview(buffer).cast("B")


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def inside(folder: Path, name: str) -> Path:
    """The path of `name` below `folder`, provided that its real place is there too.

    The Hub's cache keeps snapshots as symlinks into its store of blobs; that store counts as inside. So does the GGUF
    file that a private folder of `formats.gguf` was made for.

    Raises:
        FormatError: the name is absolute, climbs with "..", or is a symlink to somewhere else.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise FormatError(
            f"the file name {quoted(name)} does not stay in its folder",
            where=str(folder),
            expected="a relative path without '..'",
            do="Do not use this folder unless you know who wrote it.",
        )
    path = folder / name
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(root) for root in _roots(folder)) and not _is_own_link(folder, name):
        raise FormatError(
            f"a symlink that leaves its folder, to {real}",
            where=str(path),
            expected="a file in the folder",
            do="Replace the link by a copy of the file.",
        )
    return path


def _roots(folder: Path) -> list[Path]:
    """Where files of the folder may really lie: in it, or in the blobs of the Hub cache that it is a snapshot of."""
    real = Path(os.path.realpath(folder))
    roots = [real]
    for snapshot in (real, *real.parents):
        repo = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repo.name.startswith("models--"):
            roots += [repo / "blobs", repo.parent / "blobs"]
    return roots


def _is_own_link(folder: Path, name: str) -> bool:
    """Whether it is a link that `formats.gguf` made: right in a private folder below Suture's own cache."""
    if not name.endswith(".gguf") or "/" in name:
        return False
    own = Path(os.path.realpath(cache_folder() / GGUF_FOLDERS))
    return Path(os.path.realpath(folder)).parent.parent == own
