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
true rank the more specific one and remove the other.

## References
- huggingface/peft#2419: how patterns are matched
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, from_problems
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """Pairs of another rank than configured."""
    return from_problems(case, RULE.code, RULE.name)


RULE = Rule("M304", "rank-mismatch", "error", check, modes=("F19", "F20", "F49"))
