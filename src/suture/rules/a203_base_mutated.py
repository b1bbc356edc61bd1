"""# A203 base-mutated

## What it finds
An adapter that was initialised in a way that changed the base model: PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ, and any
initialisation that this version does not know.

## Why it matters
These methods take something out of the base's weights (PiSSA: the largest singular values) and start the adapter with
it. The trained adapter belongs to what was left. Added to the untouched base, the part that was moved counts twice, and
the result is a model that nobody trained.

## How it is detected
`init_lora_weights` and `loftq_config` in `adapter_config.json`. True, false, `gaussian`, `eva`, `orthogonal` and `mica`
leave the base alone.

## How to fix
With PEFT and the model that training began with, save the adapter again as a plain one:
`model.save_pretrained(out, path_initial_model_for_weight_conversion=…)`. Or merge onto the changed base, if it was
saved: set `"init_lora_weights": true` and `"loftq_config": {}` in the adapter's config, and give that base as BASE.

## References
- huggingface/peft#1626: PiSSA in PEFT
- huggingface/peft#1929: its conversion to a plain LoRA
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding

MUTATING = {
    "pissa": "PiSSA takes the largest singular values out of the base's weights",
    "olora": "OLoRA takes an orthonormal part out of the base's weights",
    "corda": "CorDA takes a part that depends on data out of the base's weights",
    "lora_ga": "LoRA-GA takes a part that depends on gradients out of the base's weights",
    "loftq": "LoftQ replaces the base's weights by quantised ones",
}
HARMLESS = ("gaussian", "eva", "orthogonal", "mica")


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: how the adapter began."""
    config = case.adapter.config
    init = config.get("init_lora_weights")
    why = _reason(init)
    if why:
        field, value = "init_lora_weights", init
    elif config.get("loftq_config"):
        field, value, why = "loftq_config", "set", MUTATING["loftq"]
    else:
        return
    yield RULE.finding(
        f"adapter_config.json: {field}",
        f"{field} is {value}: {why}",
        "an adapter that was trained on the unchanged base",
        "Save it with PEFT's path_initial_model_for_weight_conversion, or merge onto the changed base that was saved"
        " with it (then set init_lora_weights to true).",
    )


def _reason(init: object) -> str:
    """Why this initialisation rules the merge out; empty if it does not."""
    if init is None or isinstance(init, bool):
        return ""
    name = str(init).lower()
    if name in HARMLESS:
        return ""
    known = next((why for start, why in MUTATING.items() if name.startswith(start)), "")
    return known or "it is not known whether this changes the base's weights"


RULE = Rule("A203", "base-mutated", "error", check, modes=("F18", "F49"))
