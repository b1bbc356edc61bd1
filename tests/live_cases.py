"""What rules find in models in memory."""

from __future__ import annotations

from typing import Any

import suture
from suture.values import Finding


def found(model: Any, code: str, **seen: Any) -> list[Finding]:
    """The findings of one rule on a model."""
    return [f for f in suture.check(model, **seen) if f.code == code]
