"""The end of a merge: a verified output appears by one rename, any other disappears."""

from __future__ import annotations

from pathlib import Path

from suture.errors import NotVerified, OutputError
from suture.execute.claim import check_output, discard, reclaim, release, remove, require_lock
from suture.execute.disk import sync_path, writing
from suture.execute.receipt import RECEIPT, receipt_bytes
from suture.values import Staged, Verdict


def abandon(staged: Staged) -> None:
    """Remove a staged output that will not be published."""
    discard(reclaim(staged))


def publish(staged: Staged, verdict: Verdict) -> Path:
    """Let a verified output appear, whole, by one rename.

    Raises:
        NotVerified: the verdict is not good; what was staged is removed.
        OutputExists, OutputLocked, OutputError: the output cannot appear; what was staged stays.
    """
    claimed = reclaim(staged)
    try:
        require_lock(claimed)
        if not verdict.ok:
            remove(claimed)
            raise _not_verified(staged, verdict)
        check_output(staged.out)
        _require_receipt(staged)
        with writing(staged.out):
            staged.folder.rename(staged.out)
            claimed.journal.unlink(missing_ok=True)
            sync_path(staged.out.parent)
    finally:
        release(claimed)
    return staged.out


def _require_receipt(staged: Staged) -> None:
    """Another process may have replaced what was staged, if nobody held the lock in the meantime."""
    path = staged.folder / RECEIPT
    try:
        found = path.read_bytes() if path.exists() else b""
    except OSError as error:
        do = "Write to another disk. Nothing was written."
        raise OutputError(f"cannot be read back: {error.strerror}", where=str(path), do=do) from error
    if found != receipt_bytes(staged.receipt):
        raise OutputError(
            "what was staged is gone, or is another merge's", where=str(staged.folder), do="Run the merge again."
        )


def _not_verified(staged: Staged, verdict: Verdict) -> NotVerified:
    failed = [f"{c.name}: {c.detail}" if c.detail else c.name for c in verdict.checks if not c.ok]
    wrong = [f"{t.tensor} is {t.status}" for t in verdict.wrong[:3]]
    return NotVerified(
        "the merged files are not what base + adapter gives (" + "; ".join(failed + wrong) + ")",
        verdict=verdict,
        where=str(staged.out),
        do="Nothing was written. If the disk and the memory are sound, this is a bug of Suture: please report it.",
    )
