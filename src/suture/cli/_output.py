"""Where output goes: the answer to stdout, all else to stderr. Text from files is made safe to print."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from suture.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PLAIN_WIDTH = 120  # of output that does not go to a terminal


@dataclass(frozen=True, slots=True)
class Plain:
    """Output that goes to no terminal: it has no colours, so that rich is not imported for it."""

    stream: TextIO
    width: int = PLAIN_WIDTH


Out: TypeAlias = "Console | Plain"
Show = Callable[[Out], None]


@dataclass(frozen=True, slots=True)
class Styled:
    """Safe text in one of rich's styles, such as `bold red`."""

    text: str
    style: str


def console(*, stderr: bool = False) -> Out:
    """Where to print on stdout or stderr: in colour on a terminal, or where FORCE_COLOR asks for it."""
    stream = sys.stderr if stderr else sys.stdout
    return terminal(stream) if stream.isatty() or os.environ.get("FORCE_COLOR") else Plain(stream)


def terminal(stream: TextIO) -> Console:
    """A console of rich."""
    from rich.console import Console

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
    import json

    from suture.codec import to_json

    sys.stdout.write(json.dumps(to_json(data), indent=2) + "\n")


def styled(text: object, style: str = "") -> Styled:
    """Safe text in a style."""
    return Styled(printable(text), style)


def rich_text(part: Styled) -> Text:
    """The same for rich."""
    from rich.text import Text

    return Text(part.text, style=part.style)


def line(out: Out, *parts: Styled | str) -> None:
    """Print one line, never wrapped or cut, so that names can be searched for and copied."""
    safely = [part if isinstance(part, Styled) else styled(part) for part in parts]
    if isinstance(out, Plain):
        out.stream.write("".join(part.text for part in safely) + "\n")
        return
    from rich.text import Text

    out.print(Text.assemble(*map(rich_text, safely)), soft_wrap=True)


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
