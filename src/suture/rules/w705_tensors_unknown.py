"""# W705 tensors-unknown

## What it finds
Tensors in the files that the model class does not have. Those that belong to an adapter or to a wrapper (`lora_A`,
`base_layer`, `modules_to_save`, `base_model.model.`, `_orig_mod.`) are an error; others are listed.

## Why it matters
Transformers drops what it does not know, with one line in the log. If a "merged" model holds
`q_proj.base_layer.weight`, then it is no merged model: the adapter was saved beside the weights and not added to
them, the loader finds no `q_proj.weight`, and draws it at random. Other unknown tensors can be healthy, such as
layers for predicting several tokens at once, that only serving programs use.

## How it is detected
The names in the files are led through the loader's own renames, and what arrives at no parameter is unknown. Scales
of quantised weights do not count. Where Transformers does not know the class, only the names of adapters and wrappers
are looked for, and they are a warning.

## How to fix
Call `merge_and_unload()` and save what it returns, without the wrapper; or give base and adapter to `suture merge`. A
prefix of a wrapper alone can be cut from the names.

## References
- vllm-project/vllm#35548: layers that are lost in a merge
- huggingface/peft#1337: doubled prefixes in saved keys
- 2U1/Qwen-VL-Series-Finetune#259: tensors that the class drops
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from suture.model_folder import ModelFolder
from suture.rules.base import Rule, listed
from suture.rules.w706_config_shapes import surplus_layers
from suture.values import Finding

_PREFIX = r"base_model\.model\.|_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\."
_INNER = r"base_layer\.|original_module\.|modules_to_save\.(?:default\.)?|token_adapter\."
_WRECK = re.compile(
    rf"(?:(?:^|\.)(?:{_PREFIX}|{_INNER})|\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\.|$))"
)
_CUT = re.compile(rf"(?:(?<=\.)|^)(?:{_PREFIX}|{_INNER})")


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """What is left of an adapter or a wrapper, and what the class drops otherwise."""
    wrecks = leftovers(model)
    if wrecks:
        is_known = model.arch is None or model.arch.source != "headers"
        yield RULE.finding(
            f"{model.tensors[wrecks[0]].file}: {wrecks[0]}",
            f"{len(wrecks)} of {len(model.tensors)} tensors have names of an adapter or a wrapper: {listed(wrecks)}",
            "the names of the model alone: a loader drops these, and draws at random what it misses",
            "Save what merge_and_unload() returns, or merge base and adapter with suture merge.",
            severity="error" if is_known else "warning",
        )
    told = {name for names in surplus_layers(model).values() for name in names}.union(wrecks, model.quantized.siblings)
    unknown = model.arch.unknown if model.arch else ()
    others = [name for name in unknown if name not in told]
    if others and model.arch:
        yield RULE.finding(
            f"{model.tensors[others[0]].file}: {others[0]}",
            f"{model.arch.model_class} has no parameter for {len(others)} tensors: {listed(others)}",
            "only tensors of the class; Transformers passes over the others",
            "Nothing, if another program uses them. They are lost when Transformers saves the model again.",
            severity="info",
        )


def leftovers(model: ModelFolder) -> list[str]:
    """Tensors with names of an adapter or a wrapper, sorted; where the class is known, those it does not have."""
    known = model.arch is not None and model.arch.source != "headers"
    names = model.arch.unknown if known and model.arch else model.tensors
    return sorted(name for name in names if _WRECK.search(name))


def plain(name: str) -> str:
    """A tensor's name without prefixes and levels of adapters and wrappers."""
    return _CUT.sub("", name)


RULE = Rule("W705", "tensors-unknown", "error", model=check_model, modes=("F22", "F23", "F36"))
