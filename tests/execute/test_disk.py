"""What file systems refuse becomes an error with a name, unless it does not matter."""

import errno
import os
import resource

import pytest

from suture.errors import DiskFull, OutputError
from suture.execute.disk import allow_open_files, sync_path, writing

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@pytest.mark.parametrize(
    ("number", "error"), [*((n, DiskFull) for n in FULL), (errno.EACCES, OutputError), (errno.EROFS, OutputError)]
)
def test_refusals_are_named(tmp_path, number, error):
    with pytest.raises(error) as raised, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert raised.type is error
    assert raised.value.where == str(tmp_path)


def test_other_errors_are_not_touched(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError


def test_a_file_system_that_does_not_sync_paths_is_fine(tmp_path, monkeypatch):
    def refuse(number):
        def fsync(descriptor):
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    sync_path(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        sync_path(tmp_path)


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        ((256, 4096), [(1000, 4096)]),
        ((256, 500), [(500, 500)]),
        ((256, resource.RLIM_INFINITY), [(1000, resource.RLIM_INFINITY)]),
        ((1024, 4096), []),
        ((500, 500), []),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), []),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_needed(limits, asked, monkeypatch):
    found = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, wanted: found.append(wanted))
    allow_open_files(1000)
    assert found == asked
