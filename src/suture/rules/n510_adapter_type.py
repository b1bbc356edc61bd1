"""# N510 adapter-type

## What it finds
Tensors of the adapter that are stored as integers, in 8-bit floats, or in another type that cannot be added to
weights.

## Why it matters
Such numbers are codes: what they stand for is said by scales in other tensors, which an adapter's file does not have.
A tool that casts them gets other values than the ones that were trained, without an error. Adapters are trained in
float32, bfloat16 or float16, so another type means that a conversion went over the whole file.

## How it is detected
From the types in the header.

## How to fix
Take the adapter as the trainer saved it, from before it was converted.

## References
- axolotl-ai-cloud/axolotl#3771: formats of quantised weights and their scales
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.formats.dtypes import DTYPES
from suture.rules.base import Case, Rule, listed
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """At most one finding, with the tensors."""
    bad = {name: t.dtype for name, t in case.adapter.tensors.items() if not DTYPES[t.dtype].computable}
    if bad:
        yield RULE.finding(
            f"{case.adapter.file}: {listed(bad)}",
            f"{len(bad)} of {len(case.adapter.tensors)} tensors are stored as {', '.join(sorted(set(bad.values())))}",
            "F32, BF16, F16 or F64",
            "Use the adapter as it was saved by the trainer.",
        )


RULE = Rule("N510", "adapter-type", "error", check, modes=("F17",))
