"""How a damaged adapter becomes a whole one, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Repair:
    """What one rule would change in an adapter so that it finds nothing any more.

    Values are never changed: tensors get other names, or are dropped where another tensor holds the same bytes.
    """

    code: str
    words: tuple[str, ...]  # what is changed and why that is safe, a sentence each
    renamed: Mapping[str, str] = field(default_factory=dict)  # tensor → its new name
    dropped: tuple[str, ...] = ()
    assumes: str = ""  # what nothing in the files proves; such a repair is made only when asked for
    config: Mapping[str, Any] = field(default_factory=dict)  # field of adapter_config.json → new value; None removes it
