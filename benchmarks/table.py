"""A summary of a benchmark as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping


def markdown(rows: list[dict[str, object]], facts: Mapping[str, object]) -> str:
    """The summary as a table."""
    title = ", ".join(f"{key}: {value}" for key, value in facts.items())
    head = "| " + " | ".join(rows[0]) + " |"
    line = "|" + "---|" * len(rows[0])
    body = ["| " + " | ".join(str(v) for v in row.values()) + " |" for row in rows]
    return "\n".join([title, "", head, line, *body, ""])
