"""Runs one target under atheris: coverage of Suture's readers leads, mutations know JSON and the safetensors format."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

import atheris  # noqa: E402

# What is not our code, or is slow to instrument and says nothing about how bytes are read.
with atheris.instrument_imports(include=["suture.formats", "suture.targets", "suture.patterns", "suture.codec"]):
    from hostile import folders, headers, mutate

    from suture import patterns

patterns.SECONDS = 0.02  # hostile patterns are among the mutations, and cost this each

Check = Callable[[bytes, Path], bool]
Mutate = Callable[[bytes, random.Random, int], bytes]
LONGEST = 1 << 12  # bytes of an input


def run(check: Check, mutation: Mutate, seeds: Sequence[bytes], place: str = "t") -> None:
    """Fuzz until the limits on the command line; a violation, a hang or too much memory ends the process.

    Args:
        check: raises on anything but a correct result or a named error; gives whether the input was read.
        mutation: one step from an input to the next.
        seeds: sound inputs to start from.
        place: name of the folder that the input's file stands in.
    """
    folder = Path(tempfile.mkdtemp(prefix="suture-fuzz-"), place)
    if place == "t":
        folder.mkdir()
    counts = [0, 0]

    def one(data: bytes) -> None:
        counts[check(data, folder)] += 1
        if sum(counts) % 100_000 == 0:
            sys.stderr.write(f"{counts[1]} read, {counts[0]} refused\n")

    def mutated(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.randrange(4) == 0:
            return atheris.Mutate(data, longest)
        start = data if data.strip() and rng.randrange(8) else rng.choice(seeds)
        return mutation(start, rng, rng.randrange(1, 4))[:longest]

    arguments = ["-timeout=1", "-rss_limit_mb=160", f"-max_len={LONGEST}", "-len_control=0", *sys.argv[1:]]
    atheris.Setup([sys.argv[0], *arguments], one, custom_mutator=mutated)
    atheris.Fuzz()


def run_folder(name: str) -> None:
    """Fuzz the file of one of `hostile.folders.TARGETS`."""
    target = folders.TARGETS[name]
    run(target.check, mutate.json_text, target.seeds, "checkpoint-6")


def run_header() -> None:
    """Fuzz a safetensors file, with the reference as the oracle."""
    run(headers.check, mutate.safetensors, headers.SEEDS)
