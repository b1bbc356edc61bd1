"""Fuzzes a ledger file (`hostile.folders`): python fuzz/fuzz_ledger.py [CORPUS]."""

import harness

if __name__ == "__main__":
    harness.run_folder("ledger")
