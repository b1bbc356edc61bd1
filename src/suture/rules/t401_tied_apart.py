"""# T401 tied-apart

## What it finds
Parameters that are one tensor in the base model (usually the embedding and the output head) and that the adapter
changes in different ways.

## Why it matters
A change of the shared tensor changes both ends. A LoRA on the head alone would change what every token means on its
way in; two changes would be added up on one tensor. The adapter works as it was trained, the merged model prints
random tokens. So the two must become two tensors, and every flag in `config.json` that says "tied" must turn false,
or the next loader joins them again.

## How it is detected
The model class says which parameters are tied, the base's files say whether they are stored once, and the values of
the updates say whether they differ. Equal updates keep the pair tied.

## How to fix
By default nothing needs to be done: the pair is separated, and the finding says by how much the model grows. With
`--tied refuse` the merge stops instead. With `--tied keep` it goes on only when all ends get the same change. For
other tools `suture fix --separate` writes the two ends into the adapter as full matrices, which all of them read the
same way. To keep the pair tied, train both ends alike (PEFT's `ensure_weight_tying`), or neither.

## References
- huggingface/peft#2018, huggingface/peft#2244: merging LoRA on tied embeddings
- huggingface/peft#2777, huggingface/peft#2864: both ends in `modules_to_save`
- huggingface/transformers#45127: a merged model that is tied again
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule, from_problems
from suture.values import Audit, Finding, Untied


def check(case: Case) -> Iterable[Finding]:
    """An error where the user asked not to untie; otherwise the news that the pair comes apart."""
    yield from from_problems(case, RULE.code, RULE.name)
    for untied in case.settled.untied:
        yield RULE.finding(
            " and ".join(untied.members),
            f"they are one tensor in the base, and {untied.why}. Merged into that tensor, the change "
            f"would reach all of them; so the merge writes {len(untied.members)}: the model grows by {_growth(untied)}",
            "the same change for all of them, if they are to stay one tensor",
            "Nothing, where suture merge merges: each gets its own values, and config.json will say untied. --tied "
            "refuse stops instead. Other tools change both. "
            + ("suture fix --separate writes an adapter that they merge rightly. " if _has_more(case, untied) else "")
            + "To keep one tensor, train with ensure_weight_tying, or without these modules.",
            severity="info",
        )


def _has_more(case: Case, untied: Untied) -> bool:
    """True when `suture fix --separate` can write the ends in full: they are not yet, and PEFT has other modules."""
    ends = {member.rpartition(".")[0] for member in untied.members}
    is_low_rank = any(u.terms for m in untied.members if (u := case.settled.updates.get(m)) is not None)
    return is_low_rank and any(".lora_" in key and module not in ends for key, module in case.resolved.used.items())


def _growth(untied: Untied) -> str:
    in_mib = f" ({untied.n_bytes / 2**20:,.1f} MiB)" if untied.n_bytes >= 2**20 else ""
    return f"{untied.n_bytes:,} bytes{in_mib}"


def live(audit: Audit) -> Iterable[Finding]:
    """What the adapter in memory does to tied parameters."""
    for told in audit.ties:
        do = "To keep one tensor, leave these modules out, or train both ends alike. Else merge with suture merge."
        yield RULE.finding("model in memory: tied parameters", told, "", do, severity="info")


RULE = Rule("T401", "tied-apart", "error", check, live=live, modes=("F01", "F02", "F28", "F59"))
