"""The right to write one output: a lock beside it, and what becomes of the unfinished when the work fails.

.OUT.suture/lock         held from the first byte to the rename
.OUT.suture/journal      which pieces are written
.OUT.suture/<plan id>/   the output to be
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from suture.errors import DiskFull, InputError, Interrupted, OutputError, OutputExists, OutputLocked, SutureError
from suture.execute.disk import NOT_SUPPORTED, sync_path, writing
from suture.execute.stop import stopped
from suture.values import Receipt, Staged

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
    """Refuse an output that could not appear in the end. Removes what a merge that was killed after its end left.

    Raises:
        OutputExists: it has files, or is one.
        OutputError: it is a mount point, or its parent cannot be written to.
    """
    out = out.absolute()
    with writing(out.parent):
        out = _resolved(out)
        if out.is_dir() and not any(out.iterdir()):
            if out.is_mount():
                raise OutputError(
                    "it is a mount point, which no folder can be renamed to",
                    where=str(out),
                    do=f"Write to a folder below it: {out / 'merged'}",
                )
        elif out.exists():
            _tidy(out)
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
        if os.statvfs(parent).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def claim(out: Path, plan_id: str) -> Claim:
    """Lock an output and make its staging folder's parent; what is left of another plan is removed.

    Raises:
        OutputExists, OutputLocked, OutputError
    """
    check_output(out)
    out = _resolved(out)
    with writing(out.parent):
        _make_parents(out)
        folder = _shop(out) / plan_id[:16]
        claimed = Claim(out, folder, _locked(out, folder.parent))
        try:
            check_output(out)  # again: the former holder of the lock may just have published
            _remove_others(claimed)
        except BaseException:
            release(claimed)
            raise
    return claimed


@contextlib.contextmanager
def claiming(out: Path, plan_id: str) -> Iterator[Claim]:
    """The claim on `out`, given up when the block fails."""
    claimed = claim(out, plan_id)
    with _given_up(claimed):
        yield claimed
        require_lock(claimed)


@contextlib.contextmanager
def giving_up(staged: Staged) -> Iterator[None]:
    """Give a staged output up when the block fails: what looks at it before it is published."""
    try:
        yield
    except BaseException:
        with _given_up(reclaim(staged)):
            raise


@contextlib.contextmanager
def _given_up(claimed: Claim) -> Iterator[None]:
    """When the block fails, keep what is done if it can be continued, and say so; else remove it."""
    try:
        yield
    except KeyboardInterrupt as error:
        discard(claimed)
        raise stopped(claimed.out) from error
    except SutureError as error:
        if not isinstance(error, Interrupted) and not _is_ours(claimed):
            release(claimed)
            raise _lost(claimed) from error
        if not _to_be_continued(claimed, error):
            discard(claimed)
            raise
        release(claimed)
        first = error.do.removesuffix("Nothing was written.").rstrip()
        kept = (
            f"What is done is kept: run again to go on, or remove {claimed.shop}. Nothing was written to {claimed.out}."
        )
        error.do = f"{first} {kept}".lstrip()
        raise
    except BaseException:
        discard(claimed)
        raise


def _to_be_continued(claimed: Claim, error: SutureError) -> bool:
    """True for a system that may give on the next day what it refused, if there is something to go on from."""
    refused = isinstance(error, DiskFull) or (isinstance(error, InputError) and isinstance(error.__cause__, OSError))
    try:
        return refused and claimed.journal.read_bytes().count(b"\n") > 1
    except OSError:
        return False


def release(claimed: Claim) -> None:
    """Give the lock up. What is staged stays; an empty hidden folder goes."""
    lock = claimed.shop / "lock"
    try:
        if [p.name for p in claimed.shop.iterdir()] == [lock.name] and _is_ours(claimed):
            lock.unlink()
            claimed.shop.rmdir()
    except OSError as error:  # the next one may already have entered it; or the disk, or the folder, is gone
        log.debug("%s stays: %s", claimed.shop, error)
    finally:
        os.close(claimed.lock)


def discard(claimed: Claim) -> None:
    """Remove all that is staged, and give the lock up."""
    remove(claimed)
    release(claimed)


def remove(claimed: Claim) -> None:
    """Remove all that is staged, if it is still ours."""
    if not _is_ours(claimed):
        return
    shutil.rmtree(claimed.folder, ignore_errors=True)
    if claimed.folder.exists():
        log.warning("%s: not all of it could be removed", claimed.folder)
    for path in (claimed.journal, new_journal(claimed)):
        with contextlib.suppress(OSError):  # what cannot be removed is found by the next run
            path.unlink()


def new_journal(claimed: Claim) -> Path:
    """The journal that is about to replace another."""
    return claimed.journal.with_name("journal.new")


def hand_over(claimed: Claim, receipt: Receipt) -> Staged:
    """The complete output, its lock kept until `publish` or `abandon`."""
    _handed_over[claimed.shop] = claimed.lock
    return Staged(claimed.folder, claimed.out, receipt)


def reclaim(staged: Staged) -> Claim:
    """The claim of a staged output: handed over by this process, or taken anew."""
    lock = _handed_over.pop(staged.folder.parent, None)
    if lock is None:
        with writing(staged.out.parent):
            lock = _locked(staged.out, staged.folder.parent)
    return Claim(staged.out, staged.folder, lock)


def require_lock(claimed: Claim) -> None:
    """Refuse to go on when the lock's file was removed: another process may have locked a new one since.

    Raises:
        OutputError: it was.
    """
    if not _is_ours(claimed):
        raise _lost(claimed)


def _lost(claimed: Claim) -> OutputError:
    return OutputError(
        "the lock was removed while the merge ran, so another one may have written there",
        where=str(claimed.shop / "lock"),
        do=f"Run the merge again, and leave its hidden folder alone. Nothing was written to {claimed.out}.",
    )


def _is_ours(claimed: Claim) -> bool:
    return _is_locked_file(claimed.shop / "lock", claimed.lock)


def _is_locked_file(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except OSError:
        return False


def _shop(out: Path) -> Path:
    return out.parent / f".{out.name}.suture"


def _resolved(out: Path) -> Path:
    try:
        return out.resolve()
    except RuntimeError as error:  # what Python 3.11 says of links in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def _make_parents(out: Path) -> None:
    """Make the folders above `out`, and have the disk hold their names."""
    missing = [p for p in out.parents if not p.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_path(path.parent)


def _locked(out: Path, shop: Path) -> int:
    """Descriptor of the lock file, locked. The loop is for a holder that removes it between our steps."""
    left = _handed_over.pop(shop, None)
    if left is not None:
        os.close(left)
    while True:
        with contextlib.suppress(FileExistsError):
            shop.mkdir()
        try:
            lock = os.open(shop / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if shop.is_symlink():  # to nowhere
                raise
            continue
        try:
            _flock(lock, out)
        except BaseException:
            os.close(lock)
            raise
        if _is_locked_file(shop / "lock", lock):
            return lock
        os.close(lock)


def _flock(lock: int, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputLocked(
            "another process is writing this output", where=str(out), do="Wait for it, or stop it."
        ) from error
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        log.warning("%s: this file system has no locks; do not start a second merge into it", out.parent)


def _tidy(out: Path) -> None:
    """Remove the empty hidden folder of a merge that was killed between its rename and its end."""
    shop = _shop(out)
    try:
        if {p.name for p in shop.iterdir()} <= {"lock", "journal"}:
            discard(Claim(out, shop / "published", _locked(out, shop)))
    except (OSError, OutputLocked):  # nothing there, or its owner is at it
        return


def _remove_others(claimed: Claim) -> None:
    for path in sorted(claimed.shop.iterdir()):
        if path.is_dir() and path != claimed.folder:
            log.warning("%s: what an interrupted merge of another plan left is removed", path)
            shutil.rmtree(path)
            claimed.journal.unlink(missing_ok=True)
