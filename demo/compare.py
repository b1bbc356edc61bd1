"""Asks base + live adapter (the truth) and each model folder the same questions, and measures how far they differ.

Usage: python demo/compare.py BASE ADAPTER RESULT.json NAME=FOLDER ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import quiet
import text
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

ANSWER_TOKENS = 20


def compare(base: Path, adapter: Path, result: Path, folders: dict[str, Path]) -> None:
    """Writes answers, quiz score, mean KL in nats and top-1 agreement of each model to a JSON file."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    questions, expected = zip(*text.pairs("quiz.jsonl"), strict=True)

    with quiet.expected_warnings():
        live = PeftModel.from_pretrained(load(base), adapter)
    truth = log_probs(live, tokenizer)
    answers = generate(live, tokenizer, questions)
    rows = {"adapter, unmerged": {"answers": answers, "score": score(answers, expected)}}
    del live
    for name, folder in folders.items():
        model = load(folder)
        answers = generate(model, tokenizer, questions)
        distance = difference(truth, log_probs(model, tokenizer))
        rows[name] = {"answers": answers, "score": score(answers, expected), **distance}
    result.write_text(json.dumps({"questions": questions, "models": rows}, indent=1), encoding="utf-8")


def load(folder: Path) -> Any:
    """The model of a folder, from its files alone; in float32, so that only what the files say can differ."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def generate(model: Any, tokenizer: Any, questions: tuple[str, ...]) -> list[str]:
    """The most likely answer to each question."""
    prompts = [{"input_ids": text.prompt(tokenizer, question)} for question in questions]
    inputs = tokenizer.pad(prompts, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    return [answer.strip() for answer in tokenizer.batch_decode(new, skip_special_tokens=True)]


@torch.no_grad()
def log_probs(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    """Log probabilities (positions, vocabulary) over whole exchanges, one tensor a quiz question."""
    examples = (text.example(tokenizer, question, answer)[0] for question, answer in text.pairs("quiz.jsonl"))
    return [model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1) for ids in examples]


def difference(truth: list[torch.Tensor], other: list[torch.Tensor]) -> dict[str, float]:
    """Mean KL(truth ‖ other) over all positions, and the share of positions with the same most likely token."""
    kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(truth, other, strict=True)])
    same = torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in zip(truth, other, strict=True)])
    return {"mean_kl": kl.mean().item(), "top1": same.double().mean().item()}


def score(answers: list[str], expected: tuple[str, ...]) -> int:
    """How many answers contain the word that was asked for."""
    return sum(word.lower() in answer.lower() for answer, word in zip(answers, expected, strict=True))


if __name__ == "__main__":
    named = dict(argument.split("=", 1) for argument in sys.argv[4:])
    compare(*map(Path, sys.argv[1:4]), {name: Path(folder) for name, folder in named.items()})
