"""A receipt beside a merge."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from verification.made import Made

from suture import codec
from suture.planning.codec import plan_id
from suture.values import Receipt
from suture.verification.hashes import RECEIPT


@pytest.fixture
def receipt_of() -> Callable[..., Receipt]:
    """Write the receipt of a merge, with other fields where they are given."""

    def write(made: Made, **changes: object) -> Receipt:
        sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in made.folder.iterdir() if p.name != RECEIPT}
        plan = made.plan
        receipt = Receipt(1, plan_id(plan), "b", plan.base_fingerprint, "a", plan.adapter_sha256, plan.options, "k", {},
                          sums, (), ())  # fmt: skip
        receipt = replace(receipt, **changes)
        (made.folder / RECEIPT).write_bytes(codec.canonical(receipt))
        return receipt

    return write
