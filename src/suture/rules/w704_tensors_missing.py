"""# W704 tensors-missing

## What it finds
Parameters that the model class has and that no weight file holds.

## Why it matters
Transformers fills them with random numbers, prints one line in the log, and goes on. A missing head or norm makes the
model babble; a missing bias or expert makes it a little worse, which nobody sees. It happens when a merge starts from
the adapter's class and not from the base's files, when a head that was trained is left out, or when a shard was
filtered.

## How it is detected
The class that config.json names is built without weights, and the names in the files are led through the loader's own
renames. Tied tensors, of which files hold one, and what the class itself declares as not saved do not count. A head
that is missing because of a wrong tie flag is W701, layers beyond the last in the files are W706.

## How to fix
Copy the tensors from the base model, or merge again with a tool that starts from all tensors of the base. If the list
is a classifier or another head that was trained, it must come from the adapter.

## References
- huggingface/peft#756: heads that are not saved with an adapter
- vllm-project/vllm#53555: a classifier that was trained and is not in the merged model
- huggingface/peft#2450: modules that are saved empty under ZeRO-3
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.model_folder import ModelFolder
from suture.rules.base import Rule, listed
from suture.rules.w701_tie_flags_contradict import lost_head
from suture.rules.w705_tensors_unknown import leftovers, plain
from suture.rules.w706_config_shapes import absent_layers
from suture.values import Finding

PACKED_KINDS = ("Linear", "Conv1D", "Experts", "Unknown")


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """At most one finding, with the parameters."""
    if model.arch is None:
        return
    told = {lost_head(model), *(name for layer in absent_layers(model).values() for name in layer)}
    told |= {plain(name) for name in leftovers(model)}
    missing = [n for n in model.missing if n not in told and not _is_packed(model, n)]
    if missing:
        n_params = len(model.arch.params)
        yield RULE.finding(
            f"{model.weights[0]}: {missing[0]}",
            f"{len(missing)} of {n_params} parameters of {model.arch.model_class} are in no file: {listed(missing)}",
            "every parameter; Transformers fills what is missing with random numbers",
            "Copy them from the base model, or from the adapter if they were trained; or merge again.",
        )


def _is_packed(model: ModelFolder, name: str) -> bool:
    """Whether a parameter may be there in the form of a quantised one, under other names."""
    return bool(model.quantized.schemes) and model.arch is not None and model.arch.params[name].kind in PACKED_KINDS


RULE = Rule("W704", "tensors-missing", "error", model=check_model, modes=("F11", "F35", "F36"))
