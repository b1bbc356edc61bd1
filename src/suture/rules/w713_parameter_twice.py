"""# W713 parameter-twice

## What it finds
Two tensors in the files that a loader puts into one and the same parameter, under an older and a newer name, or once
fused and once for each expert.

## Why it matters
Names of tensors have changed with the versions of Transformers, and loaders rename old ones. If a merge writes the
new name and leaves the old one, both are in the files. Which of the two counts depends on their order, so the trained
values can be loaded by one program and the base's by another.

## How it is detected
The names in the files are led through the loader's own renames and conversions; two that arrive at the same parameter
are told. Tied parameters are several parameters and do not count.

## How to fix
Find out which of the two is out of date, and remove it from the file and from the index. Better: merge again with a
tool that starts from the names in the base's files.

## References
- unslothai/unsloth#5410: tensors written several times
- huggingface/transformers#45361: names of tensors that changed
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.model_folder import ModelFolder
from suture.rules.base import Rule, listed
from suture.values import Finding

SECOND, SEVERAL = "a second tensor for ", "several kinds of tensors fill "


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """At most one finding for second names, and one for fused tensors beside single ones."""
    opaque = model.arch.opaque if model.arch else {}
    for words in (SECOND, SEVERAL):
        names = sorted(name for name, why in opaque.items() if why.startswith(words))
        if names:
            where = f"{model.tensors[names[0]].file}: {names[0]}"
            found = f"{len(names)} tensors ({listed(names)}): {opaque[names[0]]}"
            do = "Remove the one that is out of date, or merge again from the base's files."
            yield RULE.finding(where, found, "one tensor for each parameter", do)


RULE = Rule("W713", "parameter-twice", "error", model=check_model, modes=("F37", "F42"))
