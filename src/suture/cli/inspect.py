"""suture inspect BASE [ADAPTER]"""

from __future__ import annotations

from functools import partial

from suture.cli import _show
from suture.cli._command import Answer
from suture.cli._options import BaseArgument, OptionalAdapter, Sources


def inspect(base: BaseArgument, sources: Sources, adapter: OptionalAdapter = None) -> Answer:
    """Tell what a base model and an adapter hold, and how many values train. Config files alone are enough."""
    reading = sources.reading()
    from suture import inspection

    found = inspection.inspect(base, adapter, reading=reading)
    return Answer(found, partial(_show.inspection, found=found))
