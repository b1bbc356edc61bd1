"""# A206 base-fingerprint-differs

## What it finds
An adapter with a ledger (`suture_ledger.json`) of the training run, and a base model that is not the one in the ledger.

## Why it matters
Two models can have the same shapes and the same name and still hold different weights: base and instruct, two
revisions, or a copy that somebody merged an adapter into. A merge onto the wrong one runs without an error, and the
model is a little worse, or a lot, than the one that was tested. A name cannot settle it; the bytes can.

## How it is detected
With `check --deep` and before every merge. The ledger holds a fingerprint of the base: sha256 over each tensor's name,
type, shape and a few blocks of its bytes. The same is computed from the given base. It does not depend on file names
or on how the weights are split into files. A base that was loaded quantised for training is not compared: the
16-bit model that one merges onto has other files.

## How to fix
Give the base, at the revision, that the run was made with: the finding has its name from the ledger. An adapter that
was trained on a merge of another adapter needs that merged model as its base. If the base was only saved anew in
another type (float32 instead of bfloat16, say) and you know that the values are the same, pass `--ignore A206`.

## References
- huggingface/peft#1567: pinning the revision of the base
- unslothai/unsloth#2139: which base an adapter belongs to
- hiyouga/LLaMA-Factory#2588: an adapter of a second stage on the base of the first
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.ledger import NAME
from suture.rules.base import Case, Rule
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: the ledger's base is another one."""
    if case.ledger is None or case.base_fingerprint is None or case.ledger.base.quantize:
        return
    then, now = case.ledger.base.fingerprint, case.base_fingerprint
    if then is not None and then != now:
        yield RULE.finding(
            f"{NAME}: base",
            f"the adapter was trained on {case.ledger.base.name}, whose bytes have the fingerprint {then[:12]}…",
            f"the base that was given, {case.checkpoint.folder.name}, whose fingerprint is {now[:12]}…",
            "Merge onto the very base of the training run. If only its type was changed, pass --ignore A206.",
        )


RULE = Rule("A206", "base-fingerprint-differs", "error", check, may_ignore=True, deep=True, modes=("F06", "F07"))
