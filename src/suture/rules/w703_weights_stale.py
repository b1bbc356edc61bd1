"""# W703 weights-stale

## What it finds
Weight files that Transformers does not read although they lie in the folder: a set of shards beside
`model.safetensors`, shards that the index does not name, `pytorch_model.bin` beside safetensors.

## Why it matters
Which of two sets is the model depends on the program that loads it. Transformers takes `model.safetensors` before an
index, others take every `model*.safetensors` that they find. So the folder can be the merged model for one program
and the old base for another, and nobody is told. It happens when a merge writes into a folder that holds a model
already.

## How it is detected
By the names of the files and the index, in the order in which Transformers looks. Two whole sets are an error.
Leftover shards and pickled copies are a warning. Other files (`value_head.safetensors`, `consolidated.safetensors`)
may be meant for another program, and are only listed.

## How to fix
Find out which set is the model (`suture verify` compares it with what the merge should give), and delete the other.
Better: merge again, into an empty folder.

## References
- unslothai/unsloth-zoo#808: stale shards stay beside a merged model
- unslothai/unsloth-zoo#35: files of a merge that are not all of one save
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.checkpoint import INDEX, SINGLE
from suture.formats.listing import is_private
from suture.model_folder import ModelFolder
from suture.rules.base import Rule, listed
from suture.values import Finding

DO = "Find out which set is the model, and delete the other."


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """Two sets, leftover shards, pickled copies, and other files."""
    ignored = sorted(model.headers.keys() - set(model.weights))
    shards = [name for name in ignored if name.startswith("model")]
    two_sets = model.weights == (SINGLE,) and (shards or INDEX in model.files)
    if two_sets:
        other = listed(shards) if shards else INDEX
        found = f"Transformers reads {SINGLE} alone; {other} beside it is another set of weights"
        yield RULE.finding(SINGLE, found, "one set of weights", DO)
    elif shards:
        found = f"{len(shards)} files that the index does not name: {listed(shards)}"
        do = "Delete them, unless the index is what is out of date: some programs load every model*.safetensors."
        yield RULE.finding(shards[0], found, "only files of the index", do, severity="warning")
    yield from _pickled(model)
    others = [name for name in ignored if not name.startswith("model")]
    if others:
        found = f"{len(others)} more weight files, which Transformers does not read: {listed(others)}"
        do = "Nothing, if another program needs them."
        yield RULE.finding(others[0], found, f"only {listed(model.weights)}", do, severity="info")


def _pickled(model: ModelFolder) -> Iterable[Finding]:
    pickled = [n for n in model.files if n.endswith((".bin", ".bin.index.json")) and "/" not in n and not is_private(n)]
    models = sorted(n for n in pickled if n.startswith(("pytorch_model", "model")))
    if models and model.weights:
        found = f"{len(models)} files of pickled weights beside safetensors: {listed(models)}"
        do = "Delete them, if they are older: programs that take them first load another model."
        yield RULE.finding(models[0], found, "safetensors alone", do, severity="warning")


RULE = Rule("W703", "weights-stale", "error", model=check_model, modes=("F23", "F42"))
