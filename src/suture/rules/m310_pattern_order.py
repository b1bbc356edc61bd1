"""# M310 pattern-order

## What it finds
Two keys of `alpha_pattern` (or of `rank_pattern`) that match the same module and have different values.

## Why it matters
The first key that matches wins, in the order in which the config lists them. PEFT sorts the keys when it saves the
config, so the first one in the file need not be the first one in training. The module then gets another alpha, which
means another strength of its update, and nothing in the file tells. The rank can be seen in the file (M304), alpha
cannot.

## How it is detected
Every key is matched with every module that the adapter trains. Different ranks are reported only where the file
disagrees with the first key.

## How to fix
Compare with the training script. Keep the key that came first there, and make the other one not match the module.

## References
- huggingface/peft#2419: how patterns are matched
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from suture import targets
from suture.rules.base import Case, Rule, listed
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding a pattern: modules for which the order of its keys matters."""
    config = case.adapter.config
    fused = targets.target_parameters(config, case.arch).values()
    names = [*targets.expected(config, case.arch).lora_modules, *(p.name for params in fused for p in params)]
    misfits = " ".join(p.where for p in case.resolved.problems if p.code == "M304")
    for field in ("alpha_pattern", "rank_pattern"):
        matches = _matches(config.get(field) or {}, names)
        unclear = {
            name: found
            for name, found in matches.items()
            if len(set(found.values())) > 1 and (field == "alpha_pattern" or name in misfits)
        }
        if unclear:
            name, found = min(unclear.items())
            values = ", ".join(f"{key!r} = {value}" for key, value in found.items())
            yield RULE.finding(
                f"adapter_config.json: {field}",
                f"for {listed(unclear)} the order of the keys decides: {values} all match {name}",
                "one value for each module; PEFT sorts the keys when saving, so training may have used another one",
                f"Compare with the training script. The merge uses {next(iter(found.values()))}, the file's first.",
            )


def _matches(patterns: Mapping[str, int], names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Module → the keys that match it, with their values, in the order of the file."""
    return {name: {key: patterns[key] for key in targets.matching(patterns, name)} for name in names}


RULE = Rule("M310", "pattern-order", "warning", check, modes=("F20",))
