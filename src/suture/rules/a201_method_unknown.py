"""# A201 method-unknown

## What it finds
An adapter whose method is not LoRA, or a variant of LoRA that this version cannot merge: activated LoRA
(`alora_invocation_tokens`), Arrow (`arrow_config`), replicated layers (`layer_replication`), KaSA (`kasa_config`),
QA-LoRA (`use_qalora`), block-diagonal LoRA (`use_bdlora`), VeLoRA (`velora_config`), MonteCLoRA (`monteclora_config`)
and layers split by Megatron (`megatron_config`).

## Why it matters
Some of these are no fixed change of the weights: activated LoRA works only after certain tokens, Arrow chooses another
adapter for every token. A merged model cannot do that; it would answer as if the adapter were always on. The others are
fixed changes, but their files mean something else than the same tensors of a plain LoRA.

## How it is detected
`peft_type` and the fields above in `adapter_config.json`. No tensor is looked at.

## How to fix
Serve the model with the adapter unmerged, or merge it with the library that trained it, where it can. There is nothing
to repair in the file.

## References
- huggingface/peft#1707: merging an adapter with replicated layers
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding

SERVE = "Serve the model with the adapter unmerged."
WAIT = "Merge it with the library that trained it, or serve it unmerged."

# Field of the config → why it rules a merge out, and what to do instead.
VARIANTS = {
    "alora_invocation_tokens": ("activated LoRA acts only after certain tokens: it is no change of weights", SERVE),
    "invocation_string": ("activated LoRA acts only after certain words: it is no change of weights", SERVE),
    "arrow_config": ("Arrow chooses among adapters for every token: it is no change of weights", SERVE),
    "layer_replication": ("it was trained on copies of layers, and the base model has each layer once", SERVE),
    "kasa_config": ("KaSA cut singular values off the base's weights when training began", SERVE),
    "use_qalora": ("QA-LoRA's A acts on averages over groups of inputs, which is not supported yet", SERVE),
    "use_bdlora": ("block-diagonal LoRA stores its factors as blocks, which is not supported yet", WAIT),
    "velora_config": ("VeLoRA keeps projections beside its factors, which is not supported yet", WAIT),
    "monteclora_config": ("MonteCLoRA keeps samplers beside its factors, which is not supported yet", WAIT),
    "megatron_config": ("its layers were split as Megatron splits them, which is not supported yet", WAIT),
}  # fmt: skip


def check(case: Case) -> Iterable[Finding]:
    """One finding for the method, and one for each variant that is switched on."""
    config = case.adapter.config
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        found = f"the adapter's method is {peft_type}"
        yield RULE.finding("adapter_config.json: peft_type", found, "LORA", WAIT)
    for field, (why, do) in VARIANTS.items():
        if config.get(field):
            yield RULE.finding(f"adapter_config.json: {field}", why, f"no {field}", do)


RULE = Rule("A201", "method-unknown", "error", check, modes=("F31", "F32", "F50"))
