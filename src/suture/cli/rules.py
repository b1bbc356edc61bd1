"""suture rules"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from suture.cli import _show
from suture.cli._command import Answer, Option

Modes = Annotated[bool, Option("List the known ways adapters go wrong, and what stands against each.")]


def rules(*, modes: Modes = False) -> Answer:
    """List all rules: code, severity, what they look at, and what they find."""
    from suture import pages

    if modes:
        ways = pages.modes()
        return Answer(ways, partial(_show.modes, ways=ways))
    table = pages.rules()
    return Answer(table, partial(_show.rules, table=table))
