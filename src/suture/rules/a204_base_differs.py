"""# A204 base-differs

## What it finds
The adapter's config names another base model than the one that was given. A name that differs only in the ending of a
4-bit copy (`-bnb-4bit`) is not another model; A212 says what it means.

## Why it matters
Two models can have the same shapes and different weights: the base and the instruct version, or two revisions. An
adapter merges onto either without an error, but it helps only the one that it was trained on.

## How it is detected
The last part of `base_model_name_or_path` is compared with the name of the base's folder, with its id on the Hub, and
with `_name_or_path` in its config. Folders can be renamed, so this is a warning. A205 compares values.

## How to fix
Give the base that the config names, at the revision that it had then. If the folder is only called differently, there
is nothing to do.

## References
- huggingface/peft#1567, huggingface/peft#1658: which revision the base had
- unslothai/unsloth#2139: which base an adapter belongs to
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding

QUANTIZED = re.compile(r"-(unsloth-)?bnb-[48]bit$")


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: the name that the adapter gives, if it is none of the base's names."""
    named = case.adapter.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named.strip():
        return
    recorded = str(case.checkpoint.config.get("_name_or_path") or "")
    names = {short_name(name) for name in (*case.beside.base_names, recorded)}
    if {short_name(named), QUANTIZED.sub("", short_name(named))} & names:
        return
    where, given = "adapter_config.json: base_model_name_or_path", case.checkpoint.folder
    yield RULE.finding(
        where,
        f"the adapter was trained on {named}",
        f"the base that was given, {_id(str(given))}",
        "Check that both are the same model, at the same revision. A renamed folder is no reason to worry.",
    )


def short_name(name: str) -> str:
    """The last part of a Hub id or a path, in lower case; for a snapshot in the Hub's cache, that of its repository."""
    return _id(name).rpartition("/")[2].lower()


def _id(name: str) -> str:
    parts = name.strip().rstrip("/\\").replace("\\", "/").split("/")
    for part in parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return "/".join(parts)


RULE = Rule("A204", "base-differs", "warning", check, modes=("F06", "F48"))
