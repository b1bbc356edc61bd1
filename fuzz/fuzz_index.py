"""Fuzzes a index file (`hostile.folders`): python fuzz/fuzz_index.py [CORPUS]."""

import harness

if __name__ == "__main__":
    harness.run_folder("index")
