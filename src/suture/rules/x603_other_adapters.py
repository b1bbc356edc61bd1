"""# X603 other-adapters

## What it finds
Further adapters in the same folder, which this merge leaves alone.

## Why it matters
A model can carry several adapters. PEFT saves the one called `default` to the folder itself and every other one to a
subfolder of its name. It is easy to merge the one at the top and to believe that all are in: a `reference` adapter of a
preference training belongs to no merge, while a second skill may well have been meant.

## How it is detected
From `adapter_config.json` files in subfolders, and in the folder around an adapter that was itself found in one. A
trainer's `checkpoint-N` folders hold earlier states of the same adapter and do not count.

## How to fix
To take another one, name it: `--adapter-name NAME`. To merge two, merge the first, and the second onto the result.

## References
- https://huggingface.co/docs/peft/package_reference/peft_model: save_pretrained and selected_adapters
- huggingface/peft#3433: names of adapters and what is saved where
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, listed
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the names."""
    others = ["default" if name == "." else name for name in case.beside.other_adapters]
    if others:
        yield RULE.finding(
            f"{case.adapter.folder}: {listed(others)}",
            f"{len(others)} more {'adapter lies' if len(others) == 1 else 'adapters lie'} here; only"
            f" {case.adapter.name} is merged",
            "",
            "Nothing, if that is the one you mean. --adapter-name takes another.",
        )


RULE = Rule("X603", "other-adapters", "info", check, modes=("F43",))
