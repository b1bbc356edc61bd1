"""What a folder holds: a model, an adapter, or the checkpoints of a training run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from suture.formats.listing import ADAPTER_CONFIG, CHECKPOINT, file_names, is_private

Part = Literal["model", "adapter", "run"]

_MODEL = re.compile(r"(pytorch_)?model\b")
TRAINER_STATE = "trainer_state.json"


def parts_of(folder: Path) -> frozenset[Part]:
    """What there is to check in a folder: a whole model, a trainer's checkpoints, an adapter; often more than one.

    Raises:
        InputError: the folder cannot be listed.
    """
    names = file_names(folder)
    found: set[Part] = {"adapter"} if ADAPTER_CONFIG in names else set()
    if TRAINER_STATE in names or checkpoints_below(folder):
        found.add("run")
    weights = [
        n for n in names if n.endswith((".safetensors", ".bin", ".safetensors.index.json")) and not is_private(n)
    ]
    # beside an adapter, a head that was saved by itself makes no model
    whole = [n for n in weights if _MODEL.match(n)] if "adapter" in found else weights
    if "config.json" in names and whole:
        found.add("model")
    return frozenset(found)


def checkpoints_below(folder: Path) -> list[Path]:
    """The checkpoints right in a run's folder, by step."""
    found = [(n, place) for place in folder.iterdir() if place.is_dir() and (n := checkpoint_number(place)) is not None]
    return [place for _, place in sorted(found)]


def checkpoint_number(folder: Path) -> int | None:
    """The step that a trainer's checkpoint is of, from its folder's name; None where it is no checkpoint."""
    match = CHECKPOINT.fullmatch(folder.resolve().name)
    return int(match[1]) if match else None
