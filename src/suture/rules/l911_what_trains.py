"""# L911 what-trains

## What it finds
Nothing wrong: it lists what trains, so that it can be compared with what was meant.

## Why it matters
`target_modules` are patterns. `q_proj` matches in the vision tower as well as in the language model; a regular
expression can match nothing; `all-linear` leaves out the head. The list shows what they came to.

## How it is detected
By counting the modules that hold factors, by the last part of their names, and the parameters that require a
gradient.

## How to fix
If a module is missing or should not be there, change `target_modules`, `exclude_modules` or `modules_to_save` before
training.

## References
- huggingface/peft#788: the layer that trains is not the one that was meant
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Rule
from suture.values import Audit, Finding


def live(audit: Audit) -> Iterable[Finding]:
    """One finding: modules with factors, and how many values train."""
    modules = ", ".join(f"{name} × {n}" for name, n in audit.targets.items()) or "none"
    groups = ", ".join(f"{row.group} {row.n_params:,}" for row in audit.rows) or "nothing"
    yield RULE.finding(
        "model in memory",
        f"{audit.n_trainable:,} of {audit.n_total:,} values train ({audit.percent:.2f} %): {groups}. "
        f"Modules with low-rank factors: {modules}",
        "",
        "Compare with what was meant to train.",
    )


RULE = Rule("L911", "what-trains", "info", live=live, modes=("F51",))
