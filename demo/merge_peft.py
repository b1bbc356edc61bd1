"""PEFT's own merge, as its documentation shows it.

Usage: python demo/merge_peft.py BASE ADAPTER OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import quiet
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def merge(base: Path, adapter: Path, out: Path) -> None:
    """Loads the base in its own dtype, merges in memory, saves."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    with quiet.expected_warnings():
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)


if __name__ == "__main__":
    merge(*map(Path, sys.argv[1:4]))
