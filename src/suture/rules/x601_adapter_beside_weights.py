"""# X601 adapter-beside-weights

## What it finds
A base folder, or a finished model's, that also holds an adapter (`adapter_config.json` or `adapter_model.*`).

## Why it matters
Transformers applies an adapter that lies beside the weights as soon as the folder is loaded. So the model that was
seen in the tests may have been base and adapter together, and if the adapter was merged into these weights before, it
counts twice.

## How it is detected
From the names of the files in the folder. In the folder of a finished model it is an error, in that of a base a
warning, because the merge leaves it out. A merged model that Suture writes never holds an adapter.

## How to fix
Move the adapter to a folder of its own. Find out whether it is already merged into the weights: `suture verify` on
the original base, the adapter and this folder tells.

## References
- huggingface/peft#1381: a merged model with its adapter beside it
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.listing import ADAPTER_CONFIG
from suture.model_folder import ModelFolder
from suture.rules.base import Case, Rule, listed
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the files."""
    files = case.beside.base_adapter
    if files:
        yield RULE.finding(
            f"{case.checkpoint.folder}: {listed(files)}",
            "the base's folder holds an adapter, which Transformers applies whenever it loads the folder",
            "weights without an adapter beside them",
            "Move the adapter away. The merge leaves it out, and is right only if it was not merged before.",
        )


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """At most one finding, with the files; without its config an adapter is not applied, only confusing."""
    files = sorted(f for f in model.files if f == ADAPTER_CONFIG or f.startswith("adapter_model."))
    is_applied = ADAPTER_CONFIG in files
    if files:
        loads = "Transformers applies it whenever the folder is loaded, on top of a merge that holds it already"
        yield RULE.finding(
            files[0],
            f"an adapter lies beside the weights ({listed(files)}); {loads if is_applied else 'it has no config'}",
            "weights without an adapter beside them",
            "Move the adapter to a folder of its own.",
            severity="error" if is_applied else "warning",
        )


RULE = Rule("X601", "adapter-beside-weights", "warning", check, model=check_model, modes=("F24",))
