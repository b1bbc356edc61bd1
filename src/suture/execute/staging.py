"""The unfinished output: a hidden folder beside `out` that becomes it by one rename. Only this file writes into it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from suture.errors import DiskFull, InputError, OutputError
from suture.execute.claim import Claim, new_journal
from suture.execute.disk import NOT_SUPPORTED, allow_open_files, sync_path, writing
from suture.execute.journal import Head, Past, journal_text, piece_line, read_journal, sum_line
from suture.execute.pieces import Piece, header_bytes
from suture.execute.stop import Stop
from suture.formats.files import inside, open_regular, read_exact
from suture.values import OutputFile

CHUNK_BYTES = 1 << 20
_FICLONE = 0x40049409 if sys.platform == "linux" else None  # of linux/fs.h
_OTHER_DISK = "Write to another disk. Nothing was written."

log = logging.getLogger(__name__)


class Stage:
    """The staging folder while it is filled. Safe to be used by several threads; `stop` makes every call raise.

    Args:
        files: the weight files to be written; others can be linked.
    """

    def __init__(self, claimed: Claim, files: Sequence[OutputFile], stop: Stop, *, durable: bool) -> None:
        self._claim = claimed
        self._folder = claimed.folder
        self._files = files
        self._n_bytes = sum(file.n_bytes for file in files)
        self.stop = stop
        self.done: frozenset[int] = frozenset()  # pieces that an earlier run has written
        self._sums: Mapping[str, str] = {}  # of the weight files that it has completed
        self._durable = durable
        self._open: dict[str, int] = {}
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="suture-sync")
        self._syncs: list[Future[None]] = []
        self._journal = -1

    def open(self, head: Head, pieces: Sequence[Piece]) -> None:
        """Open all weight files at their full size, with what an earlier run has written."""
        allow_open_files(2 * len(self._files) + 100)
        with self._writing(self._folder):
            self._take_over(head, pieces)
            self._require_space(self._n_bytes - sum(p.n_bytes for p in pieces if p.number in self.done))
            self._journal = os.open(self._claim.journal, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            for file in self._files:
                self._open_file(file)

    def clone(self, sources: Mapping[str, Path]) -> frozenset[str]:
        """Weight files that now share their blocks with the file they equal, where the file system can do that."""
        return frozenset(name for name in sources if self._clone(name, sources[name]))

    def link(self, sources: Mapping[str, Path]) -> None:
        """Make weight files other names of the files that they equal.

        Raises:
            OutputError: the file system does not allow it.
        """
        for name in sorted(sources):
            with self._writing(self._folder / name):
                place = self._place(name)
                place.unlink(missing_ok=True)
                place.hardlink_to(sources[name])

    def write(self, file: str, offset: int, data: memoryview) -> None:
        """Write all bytes of `data` at `offset` of a weight file."""
        self.check()
        try:
            while data.nbytes:
                n = os.pwrite(self._open[file], data, offset)
                data, offset = data[n:], offset + n
        except OSError:  # a context manager and a path for every write would cost a tenth of a merge
            with self._writing(self._folder / file):
                raise

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of a weight file."""
        self.check()
        path = self._folder / file
        while buffer.nbytes:
            try:
                n = os.preadv(self._open[file], [buffer], offset)
            except OSError as error:
                raise OutputError(f"cannot be read back: {error.strerror}", where=str(path), do=_OTHER_DISK) from error
            if n == 0:
                raise OutputError("something has cut the file", where=str(path), do=_OTHER_DISK)
            buffer, offset = buffer[n:], offset + n

    def finish(self, piece: int) -> None:
        """Note in the journal that a piece is written."""
        self._note(piece_line(piece))

    def sync(self, file: str, sha256: str) -> None:
        """Note that a weight file is whole; have the disk begin to take it, if the run is to be durable.

        Args:
            sha256: of the file; empty if nobody asked for it, and then only this boot trusts the file.

        Raises:
            OutputError: it was whole before, with another sha256.
        """
        if sha256 and self._sums.get(file, sha256) != sha256:
            raise OutputError(
                "an earlier run wrote other bytes than are read now: the disk lost them, or somebody changed them",
                where=str(self._folder / file),
                do=_OTHER_DISK,
            )
        self._syncs.append(self._syncer.submit(self._sync, file, sha256))

    def wait_for_disk(self) -> None:
        """Return when the disk holds all that was written, names included, if the run is to be durable."""
        for sync in self._syncs:
            sync.result()
        if not self._durable:
            return
        with self._writing(self._folder):
            folders = [p for p in self._folder.rglob("*") if p.is_dir()]
            for folder in (*sorted(folders), self._folder):
                sync_path(folder)

    def text(self, name: str, data: bytes) -> str:
        """Write a small file; its sha256."""
        return self._new(name, [data])

    def copy(self, name: str, folder: Path) -> str:
        """Copy a file of that folder byte for byte; its sha256."""
        return self._new(name, _chunks(folder, name))

    def close(self) -> None:
        """Close all files."""
        self._syncer.shutdown(cancel_futures=True)
        for descriptor in (*self._open.values(), self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._open.clear()
        self._journal = -1

    def _sync(self, file: str, sha256: str) -> None:
        if self._durable:
            with self._writing(self._folder / file):
                os.fsync(self._open[file])
        if sha256:
            self._note(sum_line(file, sha256))
        if self._durable:
            with self._writing(self._claim.journal):
                os.fsync(self._journal)

    def _note(self, line: bytes) -> None:
        with self._writing(self._claim.journal):
            if os.write(self._journal, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _take_over(self, head: Head, pieces: Sequence[Piece]) -> None:
        """Set `done` to the pieces to be trusted, and have the journal say just that; all else is removed."""
        journal = self._claim.journal
        past = read_journal(journal.read_bytes() if journal.exists() else b"", head, len(pieces))
        self.done, self._sums = self._trusted(past, pieces)
        self._tell(past, len(pieces))
        # The journal comes first: pieces of a file that is made anew must not be trusted by whoever comes after us.
        with new_journal(self._claim).open("wb") as file:
            file.write(journal_text(head, self.done, self._sums))
            file.flush()
            if self._durable:
                os.fsync(file.fileno())
        new_journal(self._claim).replace(journal)
        if not self.done and self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir(exist_ok=True)
        for name in {f.name for f in self._files} - {p.file for p in pieces if p.number in self.done}:
            (self._folder / name).unlink(missing_ok=True)

    def _trusted(self, past: Past, pieces: Sequence[Piece]) -> tuple[frozenset[int], dict[str, str]]:
        """Pieces of files of the right size that are noted, or whose file still has the sha256 that is noted."""
        there = {f.name for f in self._files if _size(self._folder / f.name) == f.n_bytes}
        done = {p.number for p in pieces if p.number in past.pieces and p.file in there}
        open_files = {p.file for p in pieces if p.number not in done}
        whole = {name for name in sorted(there & open_files & past.sums.keys()) if self._sum(name) == past.sums[name]}
        done |= {p.number for p in pieces if p.file in whole}
        sums = {n: past.sums[n] for n in past.sums if n in there and (n in whole or n not in open_files)}
        return frozenset(done), sums

    def _sum(self, name: str) -> str:
        digest = hashlib.sha256()
        try:
            for chunk in _chunks(self._folder, name):
                self.check()
                digest.update(chunk)
        except InputError as error:
            log.warning("%s: what an earlier run wrote %s; it is written again", self._folder / name, error.found)
            return ""
        return digest.hexdigest()

    def _tell(self, past: Past, n_pieces: int) -> None:
        """Say what becomes of an interrupted merge."""
        out, doubt = self._claim.out, f" ({past.doubt})" if past.doubt else ""
        if self.done:
            log.warning(
                "%s: going on with an interrupted merge, %d of %d pieces are there%s",
                out,
                len(self.done),
                n_pieces,
                doubt,
            )
        elif past.doubt or past.pieces or past.sums:
            log.warning("%s: an interrupted merge is started over%s", out, doubt or " (its files are gone)")

    def _require_space(self, left: int) -> None:
        """Refuse to begin if the `left` bytes do not fit, with what is reserved for them already.

        Raises:
            DiskFull: they do not.
        """
        reserved = sum(min(_reserved(self._folder / f.name), f.n_bytes) for f in self._files)
        missing = min(left, self._n_bytes - reserved)
        free = shutil.disk_usage(self._claim.shop).free
        if free < missing:
            more = f", {missing / 1e9:.2f} GB of them still to be reserved" if missing < self._n_bytes else ""
            raise self._full("the disk is full", "Free space, or write to another disk. Nothing was written.", more)

    def _open_file(self, file: OutputFile) -> None:
        self.check()
        path = self._place(file.name)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._open[file.name] = descriptor
        _allocate(descriptor, file.n_bytes)
        self.write(file.name, 0, memoryview(header_bytes(file)))

    def _clone(self, name: str, source: Path) -> bool:
        if _FICLONE is None:
            return False
        with source.open("rb") as file:
            try:
                fcntl.ioctl(self._open[name], _FICLONE, file.fileno())
            except OSError as error:
                log.debug("%s is copied, not cloned: %s", name, error)
                return False
        return True

    def _new(self, name: str, chunks: Iterable[bytes | memoryview]) -> str:
        digest = hashlib.sha256()
        with self._writing(self._folder / name), self._place(name).open("wb") as file:
            for chunk in chunks:
                self.check()
                file.write(chunk)
                digest.update(chunk)
            file.flush()
            if self._durable:
                os.fsync(file.fileno())
        return digest.hexdigest()

    def _place(self, name: str) -> Path:
        """The path of a file, its folders made; but not the staging folder: if that is gone, so is the claim."""
        path = self._folder / name
        for folder in reversed(path.relative_to(self._folder).parents[:-1]):
            (self._folder / folder).mkdir(exist_ok=True)
        return path

    def check(self) -> None:
        """Raise Interrupted if the run is to end."""
        self.stop.check(self._claim.out)

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Turn what the system refuses into errors that say what to do."""
        try:
            with writing(path):
                yield
        except DiskFull as error:
            if error.where == str(self._claim.out):  # told already
                raise
            raise self._full(error.found, error.do) from error

    def _full(self, found: str, do: str, more: str = "") -> DiskFull:
        free = shutil.disk_usage(self._claim.shop).free
        return DiskFull(
            f"{found}: {free / 1e9:.2f} GB are free",
            where=str(self._claim.out),
            expected=f"{self._n_bytes / 1e9:.2f} GB for the merged weights{more}",
            do=do,
        )


def _allocate(descriptor: int, n_bytes: int) -> None:
    """Reserve the file's space now, so that a full disk is found before hours of work."""
    if os.fstat(descriptor).st_size == n_bytes:
        return
    if hasattr(os, "posix_fallocate") and n_bytes:
        try:
            os.posix_fallocate(descriptor, 0, n_bytes)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
    os.ftruncate(descriptor, n_bytes)


def _chunks(folder: Path, name: str) -> Iterator[memoryview]:
    with open_regular(inside(folder, name)) as file:
        buffer = memoryview(bytearray(min(CHUNK_BYTES, file.n_bytes)))
        for offset in range(0, file.n_bytes, CHUNK_BYTES):
            chunk = buffer[: file.n_bytes - offset]
            read_exact(file, offset, chunk)
            yield chunk


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _reserved(path: Path) -> int:
    """Bytes of the disk that a file has."""
    return path.stat().st_blocks * 512 if path.is_file() else 0
