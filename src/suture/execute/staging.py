"""The unfinished output: a hidden folder beside `out` that becomes it by one rename. Only this file opens files for
writing.

    .OUT.suture/lock         held from the first byte to the rename
    .OUT.suture/journal      which pieces are written
    .OUT.suture/<plan id>/   the output to be
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from suture.errors import (
    DiskFull,
    Interrupted,
    OutputError,
    OutputExists,
    OutputLocked,
)
from suture.execute.disk import NOT_SUPPORTED, allow_open_files, sync_path, writing
from suture.execute.journal import Head, finished, head_line, piece_line
from suture.execute.pieces import header_bytes
from suture.execute.stop import Stop
from suture.formats.files import inside, open_regular, read_exact
from suture.values import OutputFile, Plan, Receipt, Staged

CHUNK_BYTES = 1 << 20
_OTHER_DISK = "Write to another disk. Nothing was written."

log = logging.getLogger(__name__)

# Locks of outputs that are complete but not published yet, by hidden folder: they bridge `run` and `publish`.
_handed_over: dict[Path, int] = {}


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to build one output, and its places on disk."""

    out: Path
    folder: Path  # becomes `out`
    lock: int  # descriptor

    @property
    def shop(self) -> Path:
        """The hidden folder that holds all that is unfinished."""
        return self.folder.parent

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.shop / "journal"


def check_output(out: Path) -> None:
    """Refuse an output that could not appear in the end. Changes nothing.

    Raises:
        OutputExists: it has files, or is one.
        OutputError: it is a mount point, or its parent cannot be written to.
    """
    out = out.resolve()
    with writing(out.parent):
        if out.is_dir() and not any(out.iterdir()):
            if out.is_mount():
                raise OutputError(
                    "it is a mount point, which no folder can be renamed to",
                    where=str(out),
                    do=f"Write to a folder below it: {out / 'merged'}",
                )
        elif out.exists():
            found = "the output folder has files" if out.is_dir() else "a file of that name exists"
            raise OutputExists(
                found,
                where=str(out),
                expected="no folder, or an empty one",
                do="Choose another, or remove it. Untouched.",
            )
        parent = next(p for p in out.parents if p.exists())
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{parent} is not a folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def claim(out: Path, plan_id: str) -> Claim:
    """Lock an output and make its staging folder's parent; what is left of another plan is removed.

    Raises:
        OutputExists, OutputLocked, OutputError
    """
    check_output(out)
    out = out.resolve()
    folder = out.parent / f".{out.name}.suture" / plan_id[:16]
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        claimed = Claim(out, folder, _locked(out, folder))
        try:
            check_output(out)  # again: the former holder of the lock may just have published
            _remove_others(claimed)
        except BaseException:
            release(claimed)
            raise
    return claimed


def release(claimed: Claim) -> None:
    """Give the lock up. What is staged stays; an empty hidden folder goes."""
    lock = claimed.shop / "lock"
    if not any(p != lock for p in claimed.shop.iterdir()):
        lock.unlink()
        claimed.shop.rmdir()
    os.close(claimed.lock)


def discard(claimed: Claim) -> None:
    """Remove all that is staged, and give the lock up."""
    shutil.rmtree(claimed.folder, ignore_errors=True)
    claimed.journal.unlink(missing_ok=True)
    release(claimed)


def hand_over(claimed: Claim, receipt: Receipt) -> Staged:
    """The complete output, its lock kept until `publish` or `abandon`."""
    _handed_over[claimed.shop] = claimed.lock
    return Staged(claimed.folder, claimed.out, receipt)


def reclaim(staged: Staged) -> Claim:
    """The claim of a staged output: handed over by this process, or taken anew."""
    lock = _handed_over.pop(staged.folder.parent, None)
    if lock is None:
        with writing(staged.out.parent):
            lock = _locked(staged.out, staged.folder)
    return Claim(staged.out, staged.folder, lock)


def _locked(out: Path, folder: Path) -> int:
    """Descriptor of the lock file, locked. The loop is for a holder that removes it between our open and lock."""
    path = folder.parent / "lock"
    left = _handed_over.pop(folder.parent, None)
    if left is not None:
        os.close(left)
    while True:
        folder.parent.mkdir(exist_ok=True)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise OutputLocked(
                "another process is writing this output", where=str(out), do="Wait for it, or stop it."
            ) from error
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            log.warning("%s: this file system has no locks; do not start a second merge into it", out.parent)
        if path.exists() and path.stat().st_ino == os.fstat(lock).st_ino:
            return lock
        os.close(lock)


def _remove_others(claimed: Claim) -> None:
    for path in sorted(claimed.shop.iterdir()):
        if path.is_dir() and path != claimed.folder:
            log.warning("%s: what an interrupted merge of another plan left is removed", path)
            shutil.rmtree(path)
            claimed.journal.unlink(missing_ok=True)


class Stage:
    """The staging folder while it is filled. Safe to be used by several threads; `stop` makes every call raise."""

    def __init__(self, claimed: Claim, plan: Plan, stop: Stop, *, durable: bool) -> None:
        self._claim = claimed
        self._folder = claimed.folder
        self._files = plan.files
        self._n_bytes = plan.n_bytes_written
        self.stop = stop
        self.done: frozenset[int] = frozenset()  # pieces that an earlier run has written
        self._durable = durable
        self._open: dict[str, int] = {}
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="suture-sync")
        self._syncs: list[Future[None]] = []
        self._journal = -1

    def open(self, head: Head, n_pieces: int) -> None:
        """Open all weight files at their full size, with what an earlier run has written."""
        allow_open_files(2 * len(self._files) + 100)
        with self._writing(self._folder):
            self.done = self._left_by_earlier_run(head, n_pieces)
            if not self.done:
                self._start_over(head)
            self._journal = os.open(self._claim.journal, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            for file in self._files:
                self._open_file(file)

    def write(self, file: str, offset: int, data: memoryview) -> None:
        """Write all bytes of `data` at `offset` of a weight file."""
        self.check()
        with self._writing(self._folder / file):
            while data.nbytes:
                n = os.pwrite(self._open[file], data, offset)
                data, offset = data[n:], offset + n

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
        with self._writing(self._claim.journal):
            os.write(self._journal, piece_line(piece))

    def sync(self, file: str) -> None:
        """Have the disk begin to take a finished weight file, if the run is to be durable, while others are written."""
        if self._durable:
            self._syncs.append(self._syncer.submit(self._sync, file))

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

    def _sync(self, file: str) -> None:
        with self._writing(self._folder / file):
            os.fsync(self._open[file])

    def _left_by_earlier_run(self, head: Head, n_pieces: int) -> frozenset[int]:
        """Pieces to be trusted; the journal is cut behind its last complete line, so that it can be continued."""
        journal = self._claim.journal
        whole = all(_size(self._folder / f.name) == f.n_bytes for f in self._files)
        text = journal.read_bytes() if whole and journal.exists() else b""
        done = finished(text, head, n_pieces)
        if done:
            os.truncate(journal, text.rfind(b"\n") + 1)
            log.info("%s: %d of %d pieces are there from an earlier run", self._folder, len(done), n_pieces)
        return done

    def _start_over(self, head: Head) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder)
        free = shutil.disk_usage(self._claim.shop).free
        if free < self._n_bytes:
            raise self._full(free)
        self._folder.mkdir()
        self._claim.journal.write_bytes(head_line(head))

    def _open_file(self, file: OutputFile) -> None:
        self.check()
        path = self._folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._open[file.name] = descriptor
        _allocate(descriptor, file.n_bytes)
        self.write(file.name, 0, memoryview(header_bytes(file)))

    def _new(self, name: str, chunks: Iterable[bytes | memoryview]) -> str:
        path = self._folder / name
        digest = hashlib.sha256()
        with self._writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for chunk in chunks:
                    self.check()
                    file.write(chunk)
                    digest.update(chunk)
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
        return digest.hexdigest()

    def check(self) -> None:
        """Raise Interrupted if the run is to end."""
        if self.stop.requested:
            raise Interrupted("stopped", where=str(self._claim.out), do="Nothing was written.")

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Turn what the system refuses into errors that say what to do."""
        try:
            with writing(path):
                yield
        except DiskFull as error:
            raise self._full(shutil.disk_usage(self._claim.shop).free) from error

    def _full(self, free: int) -> DiskFull:
        return DiskFull(
            f"the disk is full: {free / 1e9:.2f} GB are free",
            where=str(self._claim.out),
            expected=f"{self._n_bytes / 1e9:.2f} GB for the merged weights",
            do="Free space, or write to another disk. Nothing was written.",
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
