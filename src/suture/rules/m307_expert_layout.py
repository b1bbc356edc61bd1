"""# M307 expert-layout

## What it finds
LoRA on fused experts (`target_parameters`) whose tensors can be read in two ways, with nothing in the file that tells
which one is meant.

## Why it matters
There are three meanings of the same names. PEFT up to 0.18 took the two axes of an expert the other way round than
later versions. And `lora_B` (out, r · experts) can hold the ranks of one expert side by side or the experts of one rank
side by side; PEFT writes the latter, older versions of Unsloth wrote the former. Read the wrong way, every shape fits
and every expert gets the change of another one.

## How it is detected
Shapes decide where they can, then `peft_version` in `adapter_config.json`; a square expert without a version is an
error. `lora_B_layout` decides how B is packed. Without it PEFT's packing is read, and a file that names a base of
Unsloth gets a warning, because some versions wrote the other one.

## How to fix
Add to `adapter_config.json` what is missing: `"peft_version"` of the training run, or `"lora_B_layout"` with
`"rank_major"` (PEFT's packing) or `"expert_major"`. If you do not know the packing, compare the merged model with the
adapter as it was trained: `suture verify --logits`.

## References
- huggingface/peft#3083: the change of axes
- unslothai/unsloth#6930, unslothai/unsloth-zoo#1232: the two ways to pack B
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, from_problems, listed
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """Ambiguous axes are errors; an ambiguous packing is a warning that says which reading is used."""
    yield from from_problems(case, RULE.code, RULE.name)
    config = case.adapter.config
    by_unsloth = str(config.get("base_model_name_or_path") or "").lower().startswith("unsloth/")
    params = _ambiguous(case)
    if by_unsloth and config.get("lora_B_layout") is None and params:
        yield RULE.finding(
            f"{case.adapter.file}: {listed(params)}",
            "lora_B is read as PEFT packs it (the expert runs fastest); some versions of Unsloth packed it otherwise",
            '"lora_B_layout" in adapter_config.json',
            'If the adapter was trained by an older Unsloth, add "lora_B_layout": "expert_major".',
            severity="warning",
        )


def _ambiguous(case: Case) -> list[str]:
    """Updated expert parameters for which the two packings differ."""
    experts = {n: p.shape[0] for n, p in case.arch.params.items() if p.kind == "Experts"}
    return [
        name
        for name, update in case.resolved.updates.items()
        if experts.get(name, 0) > 1 and any(term.rank > 1 for term in update.terms)
    ]


RULE = Rule("M307", "expert-layout", "error", check, modes=("F15", "F16"))
