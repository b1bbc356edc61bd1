"""Fuzzes the header of a safetensors file against the reference's reader: python fuzz/fuzz_header.py [CORPUS]."""

import harness

if __name__ == "__main__":
    harness.run_header()
