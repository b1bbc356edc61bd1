"""A trainer's checkpoint as it is: adapter, optimiser, and what the trainer wrote of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from suture.values import Adapter, Json, Ledger


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What the files of a trainer's checkpoint say."""

    folder: Path
    files: Mapping[str, int]  # every file right in the folder → its size in bytes
    state: Json  # of trainer_state.json; empty where there is none
    adapter: Adapter | None  # None where the checkpoint holds a whole model
    ledger: Ledger | None
    unreadable: Mapping[str, str] = field(default_factory=dict)  # file → what is wrong with it
