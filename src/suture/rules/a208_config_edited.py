"""# A208 config-edited

## What it finds
An `adapter_config.json` that no longer says what it said when the adapter was saved, in a field that decides what the
adapter computes: rank, alpha, their patterns, `use_rslora`, `use_dora`, the targets and the like.

## Why it matters
The weights in the file are only half of an adapter. The other half is a number that stands in the config: with
`lora_alpha` 16 instead of 32 every change has half its strength, without `use_rslora` and with rank 64 it has an
eighth. The tensors keep their shapes, everything loads, and nothing warns.

## How it is detected
The ledger of the training run (`suture_ledger.json`), which stands beside the adapter, holds the config as it was
saved. The fields are compared one by one; the order of a list and a missing field that is empty do not count. Adapters
without a ledger cannot be tested. A ledger that is there and cannot be read (cut off, or of another version of Suture)
is a warning: the checks and the merge go on without it.

## How to fix
Put the old value back. If you changed the strength of the adapter on purpose, pass `--ignore A208`: the merge uses the
config as it is.

## References
- vllm-project/vllm#6909: a server without use_rslora
- huggingface/diffusers#14409: ranks and alphas that were lost in a conversion
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.ledger import NAME
from suture.rules.base import Case, Rule
from suture.targets import changed_fields
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """One finding for each field that has changed, or one for a ledger that cannot be read."""
    if case.ledger_problem:
        yield RULE.finding(
            NAME,
            f"the ledger of the training run cannot be read: {case.ledger_problem}",
            "a ledger of this version of suture, as the run wrote it",
            "Nothing, for the merge goes on without it; but whether the config was edited is not known.",
            severity="warning",
        )
    if case.ledger is None:
        return
    for field, then, now in changed_fields(case.ledger.adapter_config, case.adapter.config):
        yield RULE.finding(
            f"adapter_config.json: {field}",
            f"{field} is {_shown(now)}",
            f"{_shown(then)}, as it was when the adapter was saved ({NAME})",
            "Put the value back, or pass --ignore A208 if the change is meant.",
        )


def _shown(value: object) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


RULE = Rule("A208", "config-edited", "error", check, may_ignore=True, modes=("F19", "F20"))
