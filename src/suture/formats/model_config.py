"""Where a model's config.json says things: at its top, in the part about text, or in any part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from suture.values import Json


def text_levels(config: Json) -> tuple[Json, ...]:
    """The top of a config and, where there is one, its `text_config`, as models that see or hear have it."""
    inner = config.get("text_config")
    return (config, inner) if isinstance(inner, Mapping) else (config,)


def at_every_level(config: Json, *keys: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Where a config says one of these keys, at its top or in any part of it, and what it says there.

    What stands under such a key is not searched for more of them.
    """
    for key, value in config.items():
        if key in keys:
            yield (key,), value
        elif isinstance(value, Mapping):
            yield from (((key, *path), found) for path, found in at_every_level(value, *keys))
