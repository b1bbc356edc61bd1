"""# L910 adapter-name

## What it finds
An adapter whose name is also a part of the path of modules in the model: an adapter called `mlp`, `model` or `0`.

## Why it matters
In memory the adapter's name stands in the middle of parameter names (`q_proj.lora_A.NAME.weight`), and it is taken
out again by searching for it. With a name that occurs in module paths, tensors of other modules are taken for another
adapter's and are left out of the file, or are renamed to something that fits no base.

## How it is detected
The names of all adapters are compared with all parts of all module paths.

## How to fix
Give the adapter a name that no module has. `default` is always safe.

## References
- huggingface/peft#2334, huggingface/peft#2699, huggingface/peft#3755: adapters whose names collide with modules
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule, from_audit
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """Adapter names that are parts of module paths."""
    return from_audit(audit, RULE, "a name that no module has")


RULE = Rule("L910", "adapter-name", "error", live=live, modes=("F44",))
