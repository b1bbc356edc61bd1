"""# N504 base-quantized

## What it finds
A base model whose weights are quantised in a way that is not known here, or whose config says quantised while its
weights are not; or an update that meets a tensor that is not in BF16, F16, F32 or F64.

## Why it matters
A quantised tensor holds codes, and their scales lie in other tensors. Adding an update to the codes gives rubbish.
Bases whose method is known are dequantised while they are merged, as their own library does it.

## How it is detected
From `config.json` at every level and from the types in the header.

## How to fix
Give the 16-bit model that the quantised one was made from. For names that end in `-bnb-4bit` that is usually the name
without this ending. Or dequantise the base with the library that quantised it, save that, and merge onto it.

## References
- huggingface/peft#2105: merging onto a quantised base
- unslothai/unsloth-zoo#803: a base in FP8
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from suture.formats.dtypes import DTYPES
from suture.formats.model_config import at_every_level
from suture.formats.quantized import METHODS
from suture.rules.a204_base_differs import QUANTIZED
from suture.rules.base import Case, Rule, listed
from suture.values import Finding, Json


def check(case: Case) -> Iterable[Finding]:
    """One finding for the config, one for the tensors that would be changed."""
    do = _original(case)
    for path, scheme in sorted(_schemes(case.checkpoint.config).items()):
        known = scheme in METHODS
        found = f"the base is said to be quantised by {scheme}" + (", and no weight is" if known else "")
        yield RULE.finding(f"config.json: {path}", found, f"weights of {', '.join(sorted(METHODS))}, or none", do)
    bad = {}
    for op in case.draft.operations:
        tensor = case.checkpoint.tensors.get(op.tensor, op.source.tensor)
        if op.why != "copy" and not DTYPES[tensor.dtype].computable:
            bad[tensor.name] = tensor
    if bad:
        dtypes = ", ".join(sorted({t.dtype for t in bad.values()}))
        where = f"{min(t.file for t in bad.values())}: {listed(bad)}"
        found = f"{len(bad)} tensors to be changed are stored as {dtypes}"
        yield RULE.finding(where, found, "BF16, F16, F32 or F64", do)


def _schemes(config: Json) -> dict[str, str]:
    """Where the config says quantised, at any level, and by which method."""
    said = {".".join(path): value for path, value in at_every_level(config, "quantization_config") if value}
    methods = {path: value.get("quant_method") if isinstance(value, Mapping) else None for path, value in said.items()}
    return {path: str(method or "unknown method") for path, method in methods.items()}


def _original(case: Case) -> str:
    """Which model to give instead, as far as a name tells."""
    names = (case.checkpoint.config.get("_name_or_path"), case.adapter.config.get("base_model_name_or_path"))
    for name in names:
        if isinstance(name, str) and (original := re.sub(QUANTIZED.pattern, "", name, flags=re.IGNORECASE)) != name:
            return f"Give the 16-bit original as BASE; by its name that is {original}."
    return "Give the 16-bit original as BASE."


RULE = Rule("N504", "base-quantized", "error", check, modes=("F14", "F17", "F26"))
