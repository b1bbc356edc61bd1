"""Merge as PEFT does: load the model, load the adapter, merge_and_unload, save_pretrained. For bench_merge.py."""

from __future__ import annotations

import sys


def main() -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, adapter, out = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(out)


if __name__ == "__main__":
    main()
