"""# M315 several-towers

## What it finds
An adapter that changes more than one tower of a model: the language model, and the encoder of images or of sound too.

## Why it matters
`target_modules: ["q_proj"]` means every module of that name. In a model that sees, the attention of the vision encoder
has a `q_proj` as well, so it was trained along, which many do not intend. Nothing is wrong with that, and the merge
writes both. It is worth knowing, because tools that take only the language part of the model (text-only exports,
converters, some servers) leave the other half of the adapter behind.

## How it is detected
The paths of the changed modules are sorted by the words in them: vision, visual or image; audio or speech; the rest is
the language model. Projectors between the towers do not count.

## How to fix
If it was meant, nothing. Otherwise train again with a pattern that names the tower, such as
`target_modules: ".*language_model.*\\.(q_proj|v_proj)"`, or with `exclude_modules`.

## References
- sgl-project/sglang#12627: modules of the vision tower
- https://huggingface.co/docs/peft/package_reference/lora: target_modules and exclude_modules
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding

TOWERS = {"vision": re.compile(r"vision|visual|image|\bvit\b"), "audio": re.compile(r"audio|speech")}
BRIDGE = re.compile(r"projector|connector|merger|resampler|aligner|embed_(vision|audio)|embedding_projection")


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: how many modules of each tower."""
    towers: dict[str, set[str]] = {}
    for update in case.resolved.updates.values():
        for term in update.terms:
            if not BRIDGE.search(term.module):
                towers.setdefault(_tower(term.module), set()).add(term.module)
    if len(towers) > 1:
        counts = ", ".join(f"{len(modules)} of the {name} tower" for name, modules in sorted(towers.items()))
        examples = ", ".join(min(modules) for _, modules in sorted(towers.items()))
        yield RULE.finding(
            "adapter_config.json: target_modules",
            f"the adapter changes modules of several towers: {counts} (such as {examples})",
            "",
            "Nothing, if it was meant. Else train with a pattern that names one tower, or with exclude_modules.",
        )


def _tower(module: str) -> str:
    return next((name for name, words in TOWERS.items() if words.search(module)), "text")


RULE = Rule("M315", "several-towers", "info", check, modes=("F51",))
