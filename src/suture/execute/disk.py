"""What a file system can be asked for, and what it refuses, as errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from suture.errors import DiskFull, OutputError

NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK)
NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file would be larger than the system allows (ulimit -f, or the file system's own limit)",
}


def allow_open_files(n: int) -> None:
    """Large models have more files than some systems let a program open unless it asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft not in (resource.RLIM_INFINITY, hard) and soft < n:
        resource.setrlimit(resource.RLIMIT_NOFILE, (n if hard == resource.RLIM_INFINITY else min(n, hard), hard))


def sync_path(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:  # some network file systems keep names safe by themselves
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses into an OutputError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            first = "Raise the limit" if error.errno == errno.EFBIG else "Free space"
            do = f"{first}, or write to another disk. Nothing was written."
            raise DiskFull(NO_SPACE[error.errno], where=str(path), do=do) from error
        raise OutputError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            expected="a folder that this user can write to",
            do="Choose another output, or change the permissions. Nothing was written.",
        ) from error
