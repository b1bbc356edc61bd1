"""# T404 tokenizer-contradicts

## What it finds
An adapter that brings a tokenizer which does not extend the base's: tokens of the base are missing from it, or have
other numbers.

## Why it matters
The model knows tokens by their numbers. If the merged model gets a tokenizer that numbers them in another way, it reads
and writes other words than it means.

## How it is detected
The vocabularies of both folders are read and compared. A tokenizer that has all tokens of the base under the same
numbers, and perhaps more, takes over; nothing is reported then.

## How to fix
Choose: `--tokenizer base` keeps the base's tokenizer, `--tokenizer adapter` takes the adapter's. The right one is the
one that the training data was tokenized with.

## References
- unslothai/unsloth#188: the tokenizer of a merged model
- hiyouga/LLaMA-Factory#4408: new tokens and the tokenizer
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """What choosing the tokenizer could not decide."""
    for problem in case.sides.problems:
        yield RULE.finding(
            f"{case.adapter.folder.name}: tokenizer",
            problem,
            "all tokens of the base under the same ids",
            "Pass --tokenizer base or --tokenizer adapter: the one that training used.",
        )


RULE = Rule("T404", "tokenizer-contradicts", "error", check, modes=("F47",))
