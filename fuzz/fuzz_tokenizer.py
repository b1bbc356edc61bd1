"""Fuzzes a tokenizer file (`hostile.folders`): python fuzz/fuzz_tokenizer.py [CORPUS]."""

import harness

if __name__ == "__main__":
    harness.run_folder("tokenizer")
