"""Ledgers written by hand: what a training run leaves beside an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from suture.codec import to_json
from suture.formats.ledger import NAME, VERSION
from suture.values import BaseRecord, Ledger


def beside(adapter: Path, *, fingerprint: str | None = None, quantize: str | None = None, **changes: Any) -> Path:
    """Put the ledger of a run on org/tiny into an adapter's folder; `changes` are fields of its config then."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    ledger = Ledger(
        version=VERSION,
        base=BaseRecord("org/tiny", fingerprint, quantize),
        tensors=(),
        sha256={},
        optimizer=(),
        adapter_config={**config, **changes},
        config=None,
        data_sha256=None,
        tokenizer_sha256=None,
        versions={},
        lineage=(),
        step=1,
        epoch=1.0,
        n_tokens=1,
        metrics={},
        files={},
    )
    (adapter / NAME).write_text(json.dumps(to_json(ledger)))
    return adapter
