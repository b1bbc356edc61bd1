"""Where output goes: the answer to stdout, all else to stderr. Text from files is made safe to print."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from suture.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Show = Callable[["Console"], None]

PLAIN_WIDTH = 120  # of output that does not go to a terminal


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr, in colour on a terminal only."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False, markup=False)


def answer(data: Any, show: Show, *, json: bool) -> None:
    """Print a command's answer: one JSON document, or text for people."""
    if json:
        document(data)
    else:
        show(console())
    sys.stdout.flush()


def document(data: Any) -> None:
    """Print frozen values as one JSON document."""
    from suture.codec import to_json

    sys.stdout.write(jsonlib.dumps(to_json(data), indent=2) + "\n")


def styled(text: object, style: str = "") -> Text:
    """Safe text in a style."""
    from rich.text import Text

    return Text(printable(text), style=style)


def line(out: Console, *parts: Text | str) -> None:
    """Print one line, never wrapped or cut, so that names can be searched for and copied."""
    from rich.text import Text

    out.print(Text.assemble(*(p if isinstance(p, Text) else styled(p) for p in parts)), soft_wrap=True)


def size(n_bytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:,.0f} bytes" if unit == "bytes" else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.1f} TiB"


def counted(n: int, noun: str) -> str:
    """A number with its noun: 1 error, 2 errors."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
