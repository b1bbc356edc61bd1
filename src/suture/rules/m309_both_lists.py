"""# M309 both-lists

## What it finds
A module that the config names twice: in `target_modules`, for a low-rank update, and in `modules_to_save`, to be
trained in full.

## Why it matters
PEFT trains it in full and adds no LoRA to it, without a word. What was meant is often the other: with the embedding or
the head in both lists, the file grows by gigabytes, and the learning rate that suits a LoRA is far too high for a full
matrix.

## How it is detected
Both lists are matched with the modules of the architecture, as PEFT matches them; `target_modules` may be a regular
expression. The word `all-linear` does not count as naming a module.

## How to fix
Name the module in one list only and train again. If the full matrix in the file is what you want, pass
`--ignore M309`: the merge puts it in the place of the base's.

## References
- huggingface/peft#2018: LoRA and full training of embeddings and heads
"""

from __future__ import annotations

from collections.abc import Iterable

from suture import targets
from suture.rules.base import Case, Rule, from_audit, listed
from suture.values import Arch, Audit, Finding, Json


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the modules that are in both lists."""
    both = named_twice(case.adapter.config, case.arch)
    if both:
        yield RULE.finding(
            "adapter_config.json: target_modules, modules_to_save",
            f"both name {listed(both)}: it was trained in full, and no LoRA was added to it",
            "each module in one of the two lists",
            "If the full matrix is what you want, pass --ignore M309; otherwise train again.",
        )


def named_twice(config: Json, arch: Arch) -> set[str]:
    """Modules that both lists name, as PEFT matches them."""
    saved = tuple(config.get("modules_to_save") or ())
    if not saved or str(config.get("target_modules")).lower() == "all-linear":
        return set()
    alone = {**config, "modules_to_save": None}  # which would exclude them
    candidates = [
        param.module
        for param in arch.params.values()
        if param.kind in targets.LAYER_KINDS and f".{param.module}".endswith(tuple(f".{name}" for name in saved))
    ]
    return {module for module in candidates if targets.is_target(alone, module, arch)}


def live(audit: Audit) -> Iterable[Finding]:
    """The same of a model in memory, before it trains."""
    return from_audit(audit, RULE, "each module in one of the two lists")


RULE = Rule("M309", "both-lists", "error", check, live=live, may_ignore=True, modes=("F51",))
