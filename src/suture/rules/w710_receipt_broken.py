"""# W710 receipt-broken

## What it finds
A folder with the record of a merge (`suture_receipt.json`) whose files are no longer those of the record: some are
missing, weights were added, or bytes were changed.

## Why it matters
The record says what was merged with what, and that the result was verified. That is true of the files it names and of
no others. After a second merge into the same folder, a cut copy or an edit, the proof is of a model that is gone.

## How it is detected
The names in the record are compared with the folder. With `--deep` each file is read and its sha256 compared. Files
that are no weights and no config may be added freely: a README changes nothing.

## How to fix
If the change was meant (a new README, a chat template), nothing needs to be done; `suture verify` proves the weights
again. If it was not, copy the folder again from where it was merged, or merge again.

## References
- unslothai/unsloth-zoo#1234: a merge that says it is complete and has changed nothing
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.listing import MERGE_RECORD
from suture.model_folder import ModelFolder
from suture.rules.base import Rule, listed
from suture.values import Finding

DO = "Copy the folder again, or prove the weights again with suture verify, or merge again."


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """Files that are missing, were added, or have other bytes."""
    if MERGE_RECORD not in model.documents:
        return
    recorded = model.documents[MERGE_RECORD].get("sha256")
    if not isinstance(recorded, dict):
        yield RULE.finding(f"{MERGE_RECORD}: sha256", "there is no list of files", "the files of the merge", DO)
        return
    absent = [name for name in recorded if name not in model.files]
    if absent:
        found = f"{len(absent)} of {len(recorded)} files of the merge are not there: {listed(absent)}"
        yield RULE.finding(MERGE_RECORD, found, "every file of the record", DO)
    added = [name for name in model.weights if name not in recorded]
    if added:
        found = f"{len(added)} weight files are not of the merge: {listed(added)}"
        yield RULE.finding(MERGE_RECORD, found, "only weights of the record", DO)
    changed = [name for name, sha in (model.sha256 or {}).items() if recorded.get(name) != sha]
    weights = [name for name in changed if name in model.headers or name in ("config.json",)]
    if weights:
        found = f"{len(weights)} files were changed after the merge: {listed(weights)}"
        yield RULE.finding(MERGE_RECORD, found, "the bytes that were verified", DO)
    others = [name for name in changed if name not in weights]
    if others:
        found = f"{len(others)} files beside the weights were changed after the merge: {listed(others)}"
        do = "Nothing, if you changed them."
        yield RULE.finding(MERGE_RECORD, found, "the files of the record", do, severity="info")


RULE = Rule("W710", "receipt-broken", "error", model=check_model, modes=("F23", "F62"))
