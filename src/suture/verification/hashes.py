"""Files against the sha256 sums of the receipt beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from suture import codec
from suture.errors import FormatError
from suture.values import Check, Options, Plan, Receipt
from suture.verification import reading

RECEIPT = "suture_receipt.json"


def read_receipt(folder: Path) -> Receipt | None:
    """The receipt of a folder that Suture wrote; None when there is none that can be read."""
    data = reading.read_json(folder / RECEIPT)
    if data is None:
        return None
    try:
        return codec.from_json(Receipt, data)
    except FormatError:
        return None


def options_of(folder: Path) -> Options | None:
    """With which options Suture wrote a folder; None where no receipt tells."""
    receipt = read_receipt(folder)
    return receipt.options if receipt is not None else None


def check(folder: Path, plan: Plan, base: Path) -> tuple[Check, ...]:
    """The receipt is of these inputs, and every file it lists has its sum. No check where there is no receipt."""
    if not (folder / RECEIPT).is_file():
        return ()
    receipt = read_receipt(folder)
    if receipt is None:
        return (Check("receipt", False, 1, f"{RECEIPT} is malformed"),)
    told = []
    if receipt.base_fingerprint != plan.base_fingerprint:
        told.append("it is of another base model")
    if receipt.adapter_sha256 != plan.adapter_sha256:
        told.append("it is of another adapter")
    told += _changed(folder, receipt.sha256)
    told += [f"the base's {words}" for words in _changed(base, receipt.base_sha256)]
    words = "; ".join([*told[:4], *_other_rounding(receipt.options, plan.options)])
    return (Check("receipt", not told, len(receipt.sha256) + len(receipt.base_sha256), words),)


def _other_rounding(made: Options, now: Options) -> list[str]:
    """How the merge was rounded, where it is verified as if it had been otherwise: not wrong in itself."""
    if (made.rounding, made.seed) == (now.rounding, now.seed):
        return []
    seed = f" --seed {made.seed}" if made.rounding == "stochastic" else ""
    return [f"it was made with --rounding {made.rounding}{seed}"]


def _changed(folder: Path, sums: Mapping[str, str]) -> list[str]:
    names = sorted(sums)
    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, 8)), "hash") as pool:
        found = list(pool.map(lambda name: sha256(folder / name), names))
    return [
        f"{name} is missing" if now is None else f"{name} has changed since"
        for name, now in zip(names, found, strict=True)
        if now != sums[name]
    ]


def sha256(path: Path) -> str | None:
    """Hexadecimal sha256 of a file; None when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reading.require_sound(path, error)
        return None
