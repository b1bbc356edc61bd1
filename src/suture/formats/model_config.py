"""Where a model's config.json says things: at its top, and in the part about text."""

from __future__ import annotations

from collections.abc import Mapping

from suture.values import Json


def text_levels(config: Json) -> tuple[Json, ...]:
    """The top of a config and, where there is one, its `text_config`, as models that see or hear have it."""
    inner = config.get("text_config")
    return (config, inner) if isinstance(inner, Mapping) else (config,)
