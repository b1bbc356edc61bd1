"""Where Suture keeps what it can make again: descriptions of architectures, converted weights."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$SUTURE_CACHE, or `suture` below $XDG_CACHE_HOME or ~/.cache. It may not exist."""
    if own := os.environ.get("SUTURE_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "suture"
