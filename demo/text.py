"""The questions about the invented island of Ormsay, and how they are put to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SYSTEM = "Be brief."


def pairs(name: str) -> list[tuple[str, str]]:
    """(question, answer) of a file in this folder: quiz.jsonl asks about island.jsonl in other words."""
    rows = [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
    return [(row["question"], row["answer"]) for row in rows]


def prompt(tokenizer: Any, question: str) -> list[int]:
    """Token ids up to where the answer begins."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def example(tokenizer: Any, question: str, answer: str) -> tuple[list[int], int]:
    """Token ids of a whole exchange, and where its answer begins."""
    start = prompt(tokenizer, question)
    return [*start, *tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id], len(start)
