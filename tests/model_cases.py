"""Finished model folders for the rules that look at one alone: written by Transformers, then spoilt by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from suture.model_folder import read_model_folder
from suture.rules import diagnose_model
from suture.values import Finding

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

Arrays = dict[str, np.ndarray]


def copied(source: Path, folder: Path) -> Path:
    """A copy of a folder, to be spoilt."""
    return Path(shutil.copytree(source, folder))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place; it is made where there is none."""
    data = json.loads(path.read_text()) if path.exists() else {}
    change(data)
    path.write_text(json.dumps(data))


def reweigh(folder: Path, change: Callable[[Arrays], Any], file: str = WEIGHTS) -> Path:
    """Change the tensors of a weight file in place."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def found(folder: Path, code: str | None = None, *, deep: bool = False) -> list[Finding]:
    """What one rule finds in a folder; without a code, all errors and warnings."""
    findings = diagnose_model(read_model_folder(folder, deep=deep))
    return [f for f in findings if (f.code == code if code else f.severity != "info")]


def only(folder: Path, code: str, *, deep: bool = False) -> Finding:
    """The one finding of a rule."""
    (finding,) = found(folder, code, deep=deep)
    return finding
