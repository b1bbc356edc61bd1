"""Teaches the base model an invented island: LoRA on attention and on both ends of a tied embedding.

Usage: python demo/train.py BASE ADAPTER
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import text
import torch
from peft import LoraConfig, get_peft_model
from quiet import expected_warnings
from transformers import AutoModelForCausalLM, AutoTokenizer

EPOCHS = 5
BATCH = 4
RATE = 3e-3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "embed_tokens", "lm_head"]


def train(base: Path, adapter: Path) -> None:
    """Trains for about a minute on two cores and saves the adapter as PEFT does."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = with_lora(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    examples = [text.example(tokenizer, question, answer) for question, answer in text.pairs("text.jsonl")]

    trained = [p for p in model.parameters() if p.requires_grad]
    print(f"trainable: {sum(p.numel() for p in trained):,} of {sum(p.numel() for p in model.parameters()):,}")
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    steps = EPOCHS * -(-len(examples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    order = random.Random(0)
    start = time.monotonic()
    for epoch in range(EPOCHS):
        order.shuffle(examples)
        losses = []
        for at in range(0, len(examples), BATCH):
            loss = model(**text.batch(tokenizer, examples[at : at + BATCH])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        mean, seconds = sum(losses) / len(losses), time.monotonic() - start
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {mean:.3f} after {seconds:.0f} s", flush=True)
    save(model, adapter)


def with_lora(model: Any) -> Any:
    """The model with LoRA, r = 16. It warns of the tied embedding: that is the case the demo is about."""
    config = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
    with expected_warnings():
        return get_peft_model(model, config)


def save(model: Any, adapter: Path) -> None:
    """Saves the adapter alone, without copies of the embedding."""
    model.save_pretrained(adapter, save_embedding_layers=False)


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
