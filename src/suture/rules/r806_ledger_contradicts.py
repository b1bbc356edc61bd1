"""# R806 ledger-contradicts

## What it finds
A checkpoint whose files are not those that its ledger (`suture_ledger.json`) was written for: tensors missing, added,
or of another shape; other bytes; a config that computes something else; files that are gone.

## Why it matters
The ledger was written when what was saved had been read back and found equal to what was trained. A file that differs
from it was changed afterwards. An adapter that lost tensors is weaker, and PEFT loads it without a word; a changed
`lora_alpha` scales every update.

## How it is detected
Names and shapes are compared with the header, and the fields of the config that decide what the adapter computes with
those that were saved. With `--deep` every tensor and every file is read and its sha256 compared.

## How to fix
Bring back the original files, or resume from the checkpoint before. A run that should change something does so with
`suture train --continue`, which writes a ledger of its own.

## References
- huggingface/peft#2118: missing and unexpected tensors on loading
- huggingface/peft#2084: tensors that are dropped without a warning
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.ledger import NAME
from suture.rules.base import Rule, listed
from suture.run_folder import RunFolder
from suture.targets import changed_fields
from suture.values import Adapter, Finding, Ledger

DO = "Bring back the original of this file, or resume from the checkpoint before."


def check_run(run: RunFolder) -> Iterable[Finding]:
    """Tensors, values, config and files against the ledger."""
    if run.ledger is None:
        return
    if run.adapter is not None:
        yield from _tensors(run, run.adapter, run.ledger)
        yield from _config(run, run.adapter, run.ledger)
    own = {run.adapter.file, "adapter_config.json"} if run.adapter else set()  # which are told by what changed in them
    gone = [name for name in run.ledger.files if name not in run.files]
    if gone and not (run.adapter and run.adapter.folder != run.folder):
        found = f"{len(gone)} files that the ledger names are gone: {listed(gone)}"
        yield RULE.finding(f"{NAME}: files", found, "every file of the ledger", DO)
    hashes = run.file_sha256 or {}
    changed = [name for name, sha in hashes.items() if run.ledger.files.get(name) != sha and name not in own]
    if changed:
        found = f"{len(changed)} files have other bytes than when they were saved: {listed(changed)}"
        yield RULE.finding(changed[0], found, "the bytes that the ledger was written for", DO)


def _tensors(run: RunFolder, adapter: Adapter, ledger: Ledger) -> Iterable[Finding]:
    shapes = {record.name: record.shape for record in ledger.tensors}
    complaints = {
        "in the ledger and not in the file": [n for n in ledger.sha256 if n not in adapter.tensors],
        "in the file and not in the ledger": [n for n in adapter.tensors if n not in ledger.sha256],
        "of another shape than in the ledger": [
            n for n, s in shapes.items() if n in adapter.tensors and adapter.tensors[n].shape != s
        ],
        "of other bytes than in the ledger": [n for n, s in (run.sha256 or {}).items() if ledger.sha256.get(n, s) != s],
    }
    for words, names in complaints.items():
        if names:
            found = f"{len(names)} tensors are {words}: {listed(names)}"
            yield RULE.finding(f"{run.weights}: {min(names)}", found, "what was saved and read back", DO)


def _config(run: RunFolder, adapter: Adapter, ledger: Ledger) -> Iterable[Finding]:
    for field, then, now in changed_fields(ledger.adapter_config, adapter.config):
        found = f"{now!r}, and {then!r} when it was saved"
        yield RULE.finding(f"{run.beside('adapter_config.json')}: {field}", found, f"{then!r}", DO)


RULE = Rule("R806", "ledger-contradicts", "error", run=check_run, modes=("F05", "F09"))
