"""# A202 field-unknown

## What it finds
A field of `adapter_config.json` that this version does not know and that is switched on, and values of
`lora_B_layout` other than `rank_major` and `expert_major`.

## Why it matters
New variants of LoRA announce themselves by a new field. A program that does not know the field sees tensors of the
usual names and computes something else than what was trained. PEFT drops unknown fields with a warning and goes on.

## How it is detected
Every field is compared with those of PEFT 0.21's `LoraConfig`. Unknown fields whose value is null, false, zero or empty
are neutral and pass.

## How to fix
Find out which program wrote the field. If it does not change what the adapter computes (a note, a path, a setting of
the training run), remove it or pass `--ignore A202`. If it does, merge with a version that knows it.

## References
- huggingface/peft#2038, huggingface/peft#2340: fields of a newer version
- unslothai/unsloth-zoo#1232: `lora_B_layout`
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding

# Fields that this version reads, that another rule judges, or that do not change what a trained adapter computes.
KNOWN = frozenset({
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_mapping", "base_model_name_or_path", "bias",
    "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "invocation_string", "kasa_config", "layer_replication", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_B_layout", "lora_alpha", "lora_bias", "lora_dropout",
    "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save", "monteclora_config", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "target_parameters", "task_type", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora",
    "velora_config",
})  # fmt: skip
LAYOUTS = ("rank_major", "expert_major")


def check(case: Case) -> Iterable[Finding]:
    """One finding for each unknown field; adapters of other methods have fields of their own."""
    config = case.adapter.config
    if config.get("peft_type") != "LORA":
        return
    for field in sorted(config.keys() - KNOWN):
        if config[field]:
            yield RULE.finding(
                f"adapter_config.json: {field}",
                f"an unknown field with the value {_short(config[field])}",
                "only fields of PEFT's LoraConfig (version 0.21), or a neutral value",
                "If it does not change what the adapter computes, remove it or pass --ignore A202.",
            )
    layout = config.get("lora_B_layout")
    if layout is not None and layout not in LAYOUTS:
        yield RULE.finding(
            "adapter_config.json: lora_B_layout",
            f"an unknown layout, {_short(layout)}",
            " or ".join(LAYOUTS),
            "Merge with a version that knows this layout.",
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


RULE = Rule("A202", "field-unknown", "error", check, may_ignore=True, modes=("F15", "F50"))
