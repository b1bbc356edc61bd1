"""# T407 embedding-scale

## What it finds
LoRA or trained tokens on the embedding of a model that multiplies its embeddings by a constant, written by a PEFT that
did not know of the constant.

## Why it matters
Gemma 3 multiplies each embedding by √(hidden size), about 25 to 73, right after looking it up. PEFT before 0.18 left
that out for what it added: in training the adapter's part of the embedding counted once, without the factor. A merge
puts that part into the matrix, where the factor applies to it as to everything else. The merged model (and current
PEFT, unmerged) therefore has a change of the embedding that is many times too strong.

## How it is detected
From the model's type, or a `scale_embedding` that is true in its config; from the adapter's names; and from
`peft_version` in `adapter_config.json`, which older versions did not write. A Gemma of the first two generations scales
outside of the embedding, and is not affected.

## How to fix
Train again with PEFT 0.18 or later. If the adapter has LoRA on the embedding, dividing `lora_embedding_B` by the factor
gives what was trained. Trained tokens cannot be repaired like this: in training the other tokens had no factor either.

## References
- huggingface/peft#2809, huggingface/peft#2825: the scale in LoRA and trained tokens
- huggingface/peft#2839: the same for DoRA
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.model_config import text_levels
from suture.rules.base import Case, Rule
from suture.targets import peft_version
from suture.values import Finding, Json

FIXED = (0, 18)
ALWAYS = ("gemma3", "gemma3_text", "gemma3n", "gemma3n_text")  # types whose embedding module multiplies
SETTABLE = ("bart", "mbart", "plbart", "m2m_100", "nllb-moe", "bigbird_pegasus", "biogpt", "xglm")  # by scale_embedding
SUFFIXES = (".lora_embedding_A", ".token_adapter.trainable_tokens_delta")


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: an old adapter on a scaled embedding."""
    config = case.adapter.config
    keys = [key for key in case.adapter.tensors if key.endswith(SUFFIXES)]
    version = str(config.get("peft_version") or "")
    if not keys or not _scales(case.checkpoint.config) or (peft_version(config) or ()) >= FIXED:
        return
    written = f"written by PEFT {version}" if version else "written by a PEFT that did not record its version"
    yield RULE.finding(
        f"{case.adapter.file}: {min(keys)}",
        f"{case.arch.model_class} multiplies its embeddings by a constant, and this adapter was {written}, which left"
        " the constant out in training",
        "PEFT 0.18 or later for adapters on such an embedding",
        "Compare the merged model with the one that was trained; train again with a current PEFT if they differ.",
    )


def _scales(config: Json) -> bool:
    levels = text_levels(config)
    always = any(level.get("model_type") in ALWAYS for level in levels)
    return always or any(v.get("model_type") in SETTABLE and v.get("scale_embedding") is True for v in levels)


RULE = Rule("T407", "embedding-scale", "warning", check, modes=("F53",))
