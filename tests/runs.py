"""Runs on tiny models: their settings, and who watches them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tiny import make_base, write_pairs

from suture.training.config import RunConfig
from suture.training.run import Silent
from suture.values import Audit, StepMetrics

ENDS: dict[str, Any] = {"save": ["embed_tokens", "lm_head"], "ties": "untie"}
WEIGHTS = "adapter_model.safetensors"


class Stop(Silent):
    """Sends this process a signal at a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.at = number, step

    def step(self, metrics: StepMetrics) -> None:
        if metrics.step == self.at:
            os.kill(os.getpid(), self.number)


class Notes(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.audits: list[Audit] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def audit(self, found: Audit) -> None:
        self.audits.append(found)


def make_home(folder: Path) -> Path:
    """Bases and a data set."""
    make_base(folder / "tied")
    make_base(folder / "untied", tie=False)
    write_pairs(folder / "pairs.jsonl", 40)
    return folder


def config(home: Path, out: Path, base: str = "tied", **settings: Any) -> RunConfig:
    values = {
        "base": str(home / base),
        "out": out,
        "data": {"train": str(home / "pairs.jsonl"), "eval_share": 0.2, "max_length": 64},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "lr": 1e-2,
        "steps": 10,
        "save_every": 4,
        "prove": "off",
        "tensorboard": False,
        "device": "cpu",
    }
    return RunConfig.model_validate({**values, **settings})


def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()
