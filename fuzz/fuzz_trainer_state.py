"""Fuzzes a trainer_state file (`hostile.folders`): python fuzz/fuzz_trainer_state.py [CORPUS]."""

import harness

if __name__ == "__main__":
    harness.run_folder("trainer_state")
