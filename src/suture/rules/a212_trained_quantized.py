"""# A212 trained-quantized

## What it finds
Signs that the adapter was trained on a quantised copy of the base (QLoRA), while it is merged onto 16-bit weights.

## Why it matters
In QLoRA the base is held in 4 bits, and the adapter learns on top of those rounded weights. Merged onto the original
ones, each weight gets back what quantisation had taken: by size that is often more than the adapter itself (9 % of the
weights' norm with NF4, where adapters move them by 1 to 10 %). Mostly the model is as good or better for it, since the
original weights are the better ones; but it is not exactly the model that was evaluated in training. Where the adapter
has learned to repair the quantised model, it can be worse.

## How it is detected
From the ledger of the run, from a base called `…-bnb-4bit` in the adapter's config, from `load_in_4bit`,
`load_in_8bit` or `adapter: qlora` in an Axolotl config in `README.md`, or from `quantization_bit` in a YAML file of
LLaMA-Factory.

## How to fix
Nothing, as a rule. Evaluate the merged model itself, and not only the adapter on the quantised base. To get exactly
what was trained, merge with `--onto dequantized`: each weight that was quantised in training is quantised as it was
then, dequantised, and changed; or give the quantised model as BASE. `suture check --onto dequantized` tells how far the
two are apart.

## References
- arXiv:2305.14314: QLoRA
- huggingface/peft#2105, huggingface/peft#1080: merging onto which weights
- unslothai/unsloth-zoo#810: a family of models that needs the dequantised base
- https://huggingface.co/docs/peft/developer_guides/quantization: quantised bases in PEFT
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.beside import AXOLOTL
from suture.formats.ledger import NAME
from suture.rules.a204_base_differs import QUANTIZED, short_name
from suture.rules.base import Case, Rule
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the first sign."""
    sign = next(iter(_signs(case)), None)
    if sign is None or case.checkpoint.quantization is not None or case.checkpoint.config.get("quantization_config"):
        return
    where, found = sign
    do = "Evaluate the merged model: it stands on the 16-bit weights. --onto dequantized gives those of training."
    yield RULE.finding(where, f"the adapter was trained on a quantised base: {found}", "", do)


def _signs(case: Case) -> Iterable[tuple[str, str]]:
    if case.ledger is not None and case.ledger.base.quantize:
        yield f"{NAME}: base", f"quantised as {case.ledger.base.quantize}"
    named = case.adapter.config.get("base_model_name_or_path")
    if isinstance(named, str) and QUANTIZED.search(short_name(named)):
        yield "adapter_config.json: base_model_name_or_path", named
    settings = case.beside.settings.get(AXOLOTL, {})
    for field, value in (("adapter", "qlora"), ("load_in_4bit", "true"), ("load_in_8bit", "true")):
        if str(settings.get(field)).lower() == value:
            yield f"{AXOLOTL}: {field}", f"{field} is {value}"
    for file, other in sorted(case.beside.settings.items()):
        if file.endswith((".yaml", ".yml")) and str(other.get("quantization_bit")) in ("2", "3", "4", "8"):
            yield f"{file}: quantization_bit", f"{other['quantization_bit']} bits"


RULE = Rule("A212", "trained-quantized", "info", check, modes=("F26", "F48"))
