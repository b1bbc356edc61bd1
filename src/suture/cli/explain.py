"""suture explain [CODE]"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from suture.cli import _show
from suture.cli._command import Answer, Argument

Code = Annotated[str | None, Argument("CODE", "A rule (T401, tied-apart) or a method (dora).")]


def explain(code: Code = None) -> Answer:
    """Show the page of a rule or a method; without a code, the list of all pages."""
    from suture import pages

    if code is None:
        index = pages.index()
        return Answer(index, partial(_show.index, pages=index))
    page = pages.explain(code)
    return Answer({"code": code, "page": page}, partial(_show.page, page=page))
