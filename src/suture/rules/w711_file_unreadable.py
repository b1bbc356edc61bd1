"""# W711 file-unreadable

## What it finds
Files of a model that cannot be read: a config.json that is missing or no JSON, a weight file that was cut off, a link
to nothing, a config that Transformers does not accept.

## Why it matters
The model does not load, or loads without what was in the file. A weight file that was cut shows its tensors in the
header all the same, and some programs read zeros where the end is missing.

## How it is detected
Each file is read the way a strict reader would: sizes in a header must fill the file exactly, JSON must be whole and
must not tell one key twice, and links must stay in the folder. Where a package is missing that the class needs, the
fault is not the folder's, and it is told as information.

## How to fix
Copy or download the file again. If it was written by a save that was stopped, save again.

## References
- huggingface/safetensors, the description of the format: what a header says and what must follow it
- unslothai/unsloth#5410: files of a save that was not atomic
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.model_folder import ModelFolder
from suture.rules.base import Rule
from suture.values import Finding


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """One finding a file; and one where the model class cannot be looked at."""
    for name, why in sorted(model.unreadable.items()):
        do = "Copy or download the file again; if a save was stopped, save again."
        yield RULE.finding(name, why, "a whole file that can be read", do)
    if model.undescribed:
        do = "Install it to have names and shapes checked against the class."
        expected = "the packages that the model class needs"
        yield RULE.finding("config.json", model.undescribed, expected, do, severity="info")
    if not model.weights and not model.unreadable:
        pickled = sorted(name for name in model.files if name.endswith(".bin"))
        if pickled:
            found = "the weights are pickled: opening them can run code, so they are not looked at"
            yield RULE.finding(pickled[0], found, "safetensors", "Save the model as safetensors.", severity="warning")


RULE = Rule("W711", "file-unreadable", "error", model=check_model, modes=("F42",))
