"""What a folder holds: a model, an adapter, or the checkpoints of a training run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from suture.formats.listing import ADAPTER_CONFIG, file_names, is_private

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
TRAINER_STATE = "trainer_state.json"


def kind_of(folder: Path) -> Literal["model", "adapter", "run"]:
    """What a folder is to be checked as. A trainer's checkpoint of a whole model is a run, a run's result is a model.

    Raises:
        InputError: the folder cannot be listed.
    """
    names = file_names(folder)
    endings = (".safetensors", ".bin", ".safetensors.index.json")
    has_weights = any(n.endswith(endings) and not is_private(n) for n in names)
    if TRAINER_STATE in names:
        return "run"
    if "config.json" in names and has_weights:
        return "model"
    if any(checkpoints_below(folder)):
        return "run"
    return "adapter" if ADAPTER_CONFIG in names else "model"


def checkpoints_below(folder: Path) -> list[Path]:
    """The checkpoints right in a run's folder, by step."""
    found = [(n, place) for place in folder.iterdir() if place.is_dir() and (n := checkpoint_number(place)) is not None]
    return [place for _, place in sorted(found)]


def checkpoint_number(folder: Path) -> int | None:
    """The step that a trainer's checkpoint is of, from its folder's name; None where it is no checkpoint."""
    match = _CHECKPOINT.fullmatch(folder.resolve().name)
    return int(match[1]) if match else None
