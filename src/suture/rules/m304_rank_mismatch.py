"""# M304 rank-mismatch

## What it finds
A pair of factors whose rank is not the one that `r` and `rank_pattern` in `adapter_config.json` give for its module.

## Why it matters
The update is scaled by alpha / r (or alpha / √r). A rank that does not agree means that the config is not the one that
was saved with the file, and then nothing tells the scale: the update would be too weak or too strong, without an error.

## How it is detected
The rank is the first axis of A in the header. The config's is that of the first key in `rank_pattern` that matches the
module's path, else `r`.

## How to fix
Put the config back that was saved with this file. If it is, look at `rank_pattern`: PEFT sorts its keys when it saves
them, so where two keys match one module, another one may have been first in training (see M310); make the key of the
true rank the more specific one and remove the other. `suture fix --unsafe` takes the ranks from the tensors; it has to
assume that alpha is right.

## References
- huggingface/peft#2419: how patterns are matched
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from suture import targets
from suture.rewriting import PREFIX
from suture.rules.base import Case, Rule, from_problems
from suture.values import Finding, Repair


def check(case: Case) -> Iterable[Finding]:
    """Pairs of another rank than configured."""
    return from_problems(case, RULE.code, RULE.name)


def fix(case: Case) -> Repair | None:
    """`r` and `rank_pattern` as the tensors have them. Alpha is in no tensor, so the scale that follows is a guess."""
    if not any(p.code == "M304" for p in case.resolved.problems):
        return None
    ranks = _ranks(case)
    known = {name for param in case.arch.params.values() for name in (param.module, param.name)}
    if not ranks or not ranks.keys() <= known:  # PEFT would not find names on the disk
        return None
    if (rank := Counter(ranks.values()).most_common(1)[0][0]) == 0:
        return None
    others = {name: r for name, r in ranks.items() if r != rank}
    pattern = {re.escape(name): r for name, r in sorted(others.items())}
    before, alpha = case.adapter.config.get("r"), case.adapter.config.get("lora_alpha")
    return Repair(
        RULE.code,
        (
            f"r {before} → {rank}, as most pairs of factors have it",
            *([f"rank_pattern for {len(others)} modules of other ranks"] if others else []),
        ),
        config={"r": rank, "rank_pattern": pattern},
        assumes=f"that lora_alpha = {alpha} and alpha_pattern are right: no tensor shows them, and updates scale by "
        "alpha / r. Compare with the training script",
    )


def _ranks(case: Case) -> dict[str, int]:
    """Module (or fused parameter) → rank of its factors in the file."""
    fused = targets.target_parameters(case.adapter.config, case.arch)
    ranks = {}
    for key, tensor in case.adapter.tensors.items():
        module, found, ending = key.removeprefix(PREFIX).partition(".lora_A.")
        if not found:
            module, found, ending = key.removeprefix(PREFIX).partition(".lora_embedding_A")
        if not found or ending not in ("weight", "") or len(tensor.shape) < 2:
            continue
        level = module.count(".base_layer")
        module = module.replace(".base_layer", "")
        if level < len(params := fused.get(module, ())):
            param = params[-1 - level]
            ranks[param.name] = tensor.shape[0] // (param.shape[0] if len(param.shape) == 3 else 1)
        else:
            ranks[module] = tensor.shape[0]
    return ranks


RULE = Rule("M304", "rank-mismatch", "error", check, fix=fix, modes=("F19", "F20", "F49"))
