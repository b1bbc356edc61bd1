"""# M313 pattern-unmatched

## What it finds
A key of `rank_pattern` or `alpha_pattern` that matches no module that the adapter changes.

## Why it matters
The two patterns give single modules another rank or another alpha. A key has to match the end of a module's path, and
whole parts of it: `q_proj` does, `proj` matches nothing at all. PEFT warns of a key without a match when it
builds the model, goes on, and uses the common `r` and `lora_alpha`; other tools say nothing. A mistake in a key, or a
key with the names of another model, therefore trains or merges with another strength than the config seems to say.

## How it is detected
Each key is tried, by PEFT's rules, on every module and fused parameter that the adapter changes, under the names of the
model in memory, of the files and of the adapter.

## How to fix
Compare with the training script. If the adapter was trained with this config, nothing needs to change: training did not
use the key either. If the key was to match, correct it; M304 then says whether the ranks in the file agree with it.

## References
- huggingface/peft#2419: how patterns are matched
- huggingface/peft#2195: ranks of single modules
"""

from __future__ import annotations

from collections.abc import Iterable

from suture import targets
from suture.rules.base import Case, Rule, listed
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding a pattern, with the keys that match nothing."""
    config = case.adapter.config
    if config.get("peft_type") != "LORA" or not case.resolved.used or case.resolved.leftover:
        return  # names that lead nowhere are told by others, and would leave their keys without a match
    names = _names(case)
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(field) or {}
        matched = {key for name in names for key in targets.matching(patterns, name)}
        keys = [key for key in patterns if key not in matched]
        if keys and names:
            yield RULE.finding(
                f"adapter_config.json: {field}",
                f"{listed(keys)} {'matches' if len(keys) == 1 else 'match'} no module that the adapter changes",
                f"keys that match the end of a path such as {min(names)}",
                "Nothing, if training ran with this config: it passed over the key too. Else correct the key.",
            )


def _names(case: Case) -> set[str]:
    """Everything that a key may mean: modules and parameters, as they are called in memory and on disk."""
    changed = {n for n, u in case.resolved.updates.items() if any(t.method != "trainable_tokens" for t in u.terms)}
    names = {*(module for key, module in case.resolved.used.items() if ".lora_" in key), *changed}
    for part in case.arch.parts:
        if part.param in changed or part.tensor in changed:
            names |= {part.param, part.tensor, *(_module(n) for n in (part.param, part.tensor))}
    return names


def _module(name: str) -> str:
    return name.rpartition(".")[0]


RULE = Rule("M313", "pattern-unmatched", "warning", check, modes=("F20",))
