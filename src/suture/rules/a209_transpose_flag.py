"""# A209 transpose-flag

## What it finds
A `fan_in_fan_out` in the adapter's config that is wrong for every layer that the adapter changes.

## Why it matters
GPT-2 and a few other models keep their weights transposed, in a layer called Conv1D: the matrix is (inputs, outputs)
and not (outputs, inputs). `fan_in_fan_out: true` says so. PEFT looks at the layers and corrects the flag as it loads.
Other tools, which have only the files, believe it and transpose the update, or do not. Where the matrix is square (the
output projection of every GPT-2 attention is) the wrong way round fits as well, and the result is rubbish without an
error.

## How it is detected
The kinds of the changed layers are known from the model's class. The rule speaks when all of them are Conv1D and the
flag is not true, or all are ordinary linear layers and it is true. Where an adapter changes both kinds no value can be
right for all, and nothing is said. This merge does not depend on the flag.

## How to fix
Set the flag in `adapter_config.json` as the finding says, before you hand the adapter to another tool.

## References
- https://huggingface.co/docs/peft/package_reference/lora: fan_in_fan_out in LoraConfig
- ggml-org/llama.cpp#9948: a converter that reads the adapter's files alone
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding, Repair


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: the flag fits none of the changed layers."""
    config, params = case.adapter.config, case.arch.params
    changed = [p for name, u in case.resolved.updates.items() if u.terms and (p := params.get(name))]
    kinds = {param.kind for param in changed} & {"Linear", "Conv1D"}
    says = bool(config.get("fan_in_fan_out"))
    if len(kinds) != 1 or says == ("Conv1D" in kinds):
        return
    n = sum(param.kind in kinds for param in changed)
    stored = "linear layers, which are stored as (outputs, inputs)" if says else "Conv1D, stored as (inputs, outputs)"
    yield RULE.finding(
        "adapter_config.json: fan_in_fan_out",
        f"it is {str(says).lower()}, but all {n} changed layers are {stored}",
        str(not says).lower(),
        "Nothing for this merge, which looks at the layers. Correct the flag for other tools.",
    )


def fix(case: Case) -> Repair | None:
    """The flag as the layers are stored."""
    if not any(True for _ in check(case)):
        return None
    says = bool(case.adapter.config.get("fan_in_fan_out"))
    return Repair(
        RULE.code, (f"fan_in_fan_out: {says} → {not says}, as the layers are",), config={"fan_in_fan_out": not says}
    )


RULE = Rule("A209", "transpose-flag", "warning", check, fix=fix, modes=("F33",))
