"""# X601 adapter-beside-weights

## What it finds
A base folder that also holds an adapter (`adapter_config.json` or `adapter_model.*`).

## Why it matters
Transformers applies an adapter that lies beside the weights as soon as the folder is loaded. So the model that was seen
in the tests may have been base and adapter together, and if the adapter was merged into these weights before, it counts
twice.

## How it is detected
From the names of the files in the base's folder. A merged model that Suture writes never holds an adapter.

## How to fix
Move the adapter to a folder of its own. Find out whether it is already merged into the weights: `suture verify` on the
original base, the adapter and this folder tells.

## References
- huggingface/peft#1381: a merged model with its adapter beside it
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.listing import ADAPTER_CONFIG, file_names
from suture.rules.base import Case, Rule, listed
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the files."""
    files = [f for f in file_names(case.checkpoint.folder) if f == ADAPTER_CONFIG or f.startswith("adapter_model.")]
    if files:
        yield RULE.finding(
            f"{case.checkpoint.folder}: {listed(files)}",
            "the base's folder holds an adapter, which Transformers applies whenever it loads the folder",
            "weights without an adapter beside them",
            "Move the adapter away. The merge leaves it out, and is right only if it was not merged before.",
        )


RULE = Rule("X601", "adapter-beside-weights", "warning", check, modes=("F24",))
