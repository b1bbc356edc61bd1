"""The ledger: what was trained, on what, with what, up to where. Written last, so that its folder is whole."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from suture.codec import to_json
from suture.formats import file_sha256
from suture.formats.ledger import NAME, VERSION
from suture.formats.ledger import read_ledger as read
from suture.formats.listing import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from suture.training.folder import put_json, sync
from suture.values import Ledger

__all__ = ["NAME", "VERSION", "hash_files", "read", "tokenizer_sha256", "versions", "write"]

PACKAGES = ("suture", "torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes", "datasets", "tokenizers")
WEIGHTS = (ADAPTER_WEIGHTS, ADAPTER_CONFIG)
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")


def write(folder: Path, ledger: Ledger) -> None:
    """Write the ledger. This says that every other file of the folder is complete."""
    sync(folder)
    put_json(folder / NAME, to_json(ledger))


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file beside the ledger, by name."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != NAME)
    return {name: file_sha256(folder / name) for name in names}


def versions() -> dict[str, str]:
    """Python and the packages that decide what a step computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def tokenizer_sha256(processor: Any) -> str | None:
    """sha256 of what turns text into ids: the tokens with their ids, the fast tokenizer's rules, the chat template.

    Args:
        processor: a tokenizer, or what holds one; None for what has none (an image processor).
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "get_vocab"):
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else None
    for state in ("truncation", "padding"):  # of the last call, not of the tokenizer
        if rules is not None:
            rules[state] = None
    what: Mapping[str, Any] = {
        "tokens": tokenizer.get_vocab(),
        "rules": rules,
        "template": getattr(processor, "chat_template", None),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
