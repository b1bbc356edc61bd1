"""# X604 base-is-merged

## What it finds
A base that is itself the result of a merge by Suture; an error where it was merged with this very adapter.

## Why it matters
A merged model looks like any other. Merged a second time, the same adapter counts twice, and the model that comes out
was never trained. With another adapter it may be meant: a second stage that was trained on the result of the first.

## How it is detected
A merge leaves a record in its folder, `suture_receipt.json`, with the sha256 of the adapter that went in. With `check
--deep` and before every merge it is compared with that of this adapter. Merges of other tools leave no record, and
are not found.

## How to fix
Give the base that the adapter was trained on; the record names the one that went into the merge. If the adapter was
trained on the merged model, there is nothing to do.

## References
- huggingface/peft#1381: a merged model with its adapter beside it
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.listing import MERGE_RECORD
from suture.rules.base import Case, Rule
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: which merge the base came from."""
    receipt = case.beside.receipt
    if not receipt:
        return
    base, adapter = receipt.get("base", "?"), receipt.get("adapter", "?")
    if case.adapter_sha256 is not None and receipt.get("adapter_sha256") == case.adapter_sha256:
        yield RULE.finding(
            MERGE_RECORD,
            f"the base is {base} with this adapter ({adapter}) merged in already: it would count twice",
            "the base that the adapter was trained on",
            f"Give {base} as the base; the folder that was given is the result.",
        )
        return
    yield RULE.finding(
        MERGE_RECORD,
        f"the base is itself a merge, of {base} and {adapter}",
        "",
        "Nothing, if the adapter was trained on that merge.",
        severity="info",
    )


RULE = Rule("X604", "base-is-merged", "error", check, may_ignore=True, deep=True, modes=("F07", "F24"))
