"""Fuzzes a adapter_config file (`hostile.folders`): python fuzz/fuzz_adapter_config.py [CORPUS]."""

import harness

if __name__ == "__main__":
    harness.run_folder("adapter_config")
