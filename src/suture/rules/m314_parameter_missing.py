"""# M314 parameter-missing

## What it finds
A parameter of the model's class that would be in no file after the merge: the base's files do not have it, and the
adapter does not bring it.

## Why it matters
Transformers fills such a parameter with random numbers as it loads the model, with one line of warning that is easy to
miss. It happens to heads: a classifier's base was saved as a language model, the class in `config.json` was edited
afterwards, or the trained head stayed behind when the adapter was saved. The merged model then answers by chance.

## How it is detected
The parameters of the class that `config.json` names are compared with the tensors in the base's files and in the
adapter, through the renames and conversions that Transformers applies on loading. A parameter that is tied to one that
exists is not missing. Tensors that are put together on loading, such as the weights of experts, must fit: one expert
that is missing is found too. Where another conversion cannot be followed, or the weights are quantised by a method
that is not read, nothing is said.

## How to fix
Find the file with the missing parameter: for a head, look for other weight files beside the adapter (X602), and at
`modules_to_save` of the training. If the random values are meant, because the head is to be trained later, pass
`--ignore M314`.

## References
- huggingface/peft#756, huggingface/peft#876: heads that were not saved
- huggingface/sentence-transformers#3980: heads that are left behind
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, listed
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the parameters."""
    arch = case.arch
    if misfits := arch.misfits:
        first = min(misfits)
        yield RULE.finding(
            f"{case.checkpoint.folder.name}: {listed(misfits)}",
            f"{len(misfits)} tensors do not fit together to what a loader makes of them: one is missing, or has another"
            f" shape ({first}: {misfits[first]})",
            "the weights of all experts, say, in the shapes that the config tells",
            "Download or save the base again.",
        )
    if arch.opaque or case.checkpoint.config.get("quantization_config"):
        return
    held = {part.param for part in arch.parts} | set(case.checkpoint.tensors) | set(case.settled.updates)
    held |= {member for tie in arch.ties if held & set(tie.members) for member in tie.members}
    missing = [name for name in arch.params if name not in held]
    if missing:
        yield RULE.finding(
            f"{case.checkpoint.folder.name}: {listed(missing)}",
            f"{len(missing)} of {len(arch.params)} parameters of {arch.model_class} are neither in the base's files nor"
            " in the adapter; they would be drawn at random on loading",
            "every parameter of the class in one of the files",
            "Give a base that was saved as this class, or an adapter whose modules_to_save has them. --ignore M314"
            " merges without them.",
        )


RULE = Rule("M314", "parameter-missing", "error", check, may_ignore=True, modes=("F11", "F35"))
