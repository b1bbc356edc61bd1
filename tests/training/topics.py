"""Question and answer pairs from the reference that every Python carries: a real text on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

ANSWER_CHARACTERS = 400


def write_topics(path: Path, n_pairs: int) -> Path:
    """Writes prompt and completion pairs: a topic of the reference, and a paragraph of what it says."""
    with path.open("w", encoding="utf-8") as file:
        for question, answer in pairs()[:n_pairs]:
            file.write(json.dumps({"prompt": question, "completion": answer}) + "\n")
    return path


def pairs() -> list[tuple[str, str]]:
    """Up to three paragraphs of every topic, the first ones of all topics first."""
    found = []
    for label, text in sorted(topics.items()):
        paragraphs = [" ".join(p.split()) for p in text.split("\n\n")[1:]]
        long = [p[:ANSWER_CHARACTERS] for p in paragraphs if len(p) > 80 and not p.startswith(("*", "-", "="))]
        found += [
            (i, f"What does the Python reference say about {label}? ({i + 1})\n", p) for i, p in enumerate(long[:3])
        ]
    return [(question, answer) for _, question, answer in sorted(found)]
