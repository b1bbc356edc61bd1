"""# M301 key-unmatched

## What it finds
Tensors of the adapter whose names lead to no module of the base model.

## Why it matters
Most loaders skip what they cannot place. The merge "succeeds", the new weights equal the base's, and the training is
lost without an error. It takes one missing level in the names (`model.`), a wrapper's prefix (`_orig_mod.`,
`module.`), an adapter name that stayed in them (`lora_A.default`), or a model class that was rearranged.

## How it is detected
Every name must be `base_model.model.`, then the path of a module as Transformers names it in memory (or as it is named
in the base's files), then a known ending such as `lora_A.weight`. One name that does not fit stops the merge.

## How to fix
If one rewriting makes all names fit, the finding says which, with a name before and after, and `suture fix` writes the
adapter with the new names. If none does, this is probably not the base that the adapter was trained on.

## References
- huggingface/peft#2566, huggingface/peft#2586: merged weights equal to the base's
- huggingface/peft#2118: missing keys on loading
- huggingface/peft#2957: names with wrappers
- unslothai/unsloth-zoo#1234: none of 326 weights changed
"""

from __future__ import annotations

from collections.abc import Iterable

from suture import resolve
from suture.rules.base import Case, Rule, from_problems, listed
from suture.values import Finding, Repair


def check(case: Case) -> Iterable[Finding]:
    """What resolving says of the names; and no tensor may be left over without a reason."""
    yield from from_problems(case, RULE.code, RULE.name)
    left = case.resolved.leftover
    if left and not case.resolved.problems:
        yield RULE.finding(
            case.adapter.file,
            f"{len(left)} tensors have no place in the merged model: {listed(left)}",
            "each tensor of the adapter used once",
            "Save the adapter again with PEFT.",
        )


def fix(case: Case) -> Repair | None:
    """Other names, by one rule for the whole file. Where two names become one, the tensors must be equal."""
    if not any(p.code == "M301" for p in case.resolved.problems):
        return None
    found = resolve.remedy(case.checkpoint, case.adapter, case.arch)
    found = found or resolve.remedy(case.checkpoint, case.adapter, case.arch, may_meet=True)
    return None if found is None else Repair(RULE.code, (found.words,), renamed=found.names)


RULE = Rule("M301", "key-unmatched", "error", check, fix=fix, modes=("F04", "F08", "F22", "F37", "F44"))
