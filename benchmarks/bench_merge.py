"""Time a merge against a plain copy of the base, in alternating rounds, and write JSON and Markdown.

    python benchmarks/bench_merge.py --size 1b --rounds 5 --rivals cp suture
    python benchmarks/bench_merge.py --engine-only --rivals cp engine engine-nohash

Memory that a virtual machine has given back to its host is slow to touch again. So before every timed run the base is
read once (all runs are warm) and as much memory as the run needs is touched and freed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from make_checkpoint import SIZES, TARGETS, make
from table import markdown

HERE = Path(__file__).resolve().parent
ENGINE = [sys.executable, str(HERE / "run_engine.py")]


@dataclass(frozen=True)
class Run:
    """One timed run of one rival."""

    rival: str
    seconds: float
    cpu_seconds: float
    peak_mib: float


def commands(base: Path, adapter: Path, out: Path) -> dict[str, list[str]]:
    """The command of each rival."""
    triple = [str(base), str(adapter), str(out)]
    suture = [sys.executable, "-m", "suture", "merge", str(base), str(adapter), "-o", str(out), "--json"]
    return {
        "cp": ["cp", "-r", str(base), str(out)],
        "cp-fsync": ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/* "$1"', str(base), str(out)],
        "suture": suture,
        "suture-fast": [*suture, "--durability", "fast"],
        "engine": [*ENGINE, *triple],
        "engine-nohash": [*ENGINE, *triple, "--no-hash"],
        "engine-nofsync": [*ENGINE, *triple, "--no-fsync"],
        "engine-bare": [*ENGINE, *triple, "--no-hash", "--no-fsync"],
        "peft": [sys.executable, str(HERE / "run_peft.py"), *triple],
    }


def touch_and_free(n_bytes: int) -> None:
    """Have the machine hold that much memory. In a process of its own, since a child inherits its parent's peak."""
    touch = f"memory = bytearray({n_bytes}); memory[::4096] = b'1' * len(memory[::4096])"
    subprocess.run([sys.executable, "-c", touch], check=True)


def read_all(folder: Path) -> None:
    """Bring a folder into the page cache."""
    buffer = bytearray(8 << 20)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def timed(rival: str, command: list[str]) -> Run:
    """Run a command to its end; its time, its CPU time and its peak memory."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return Run(rival, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(rivals: list[str], base: Path, adapter: Path, folder: Path, rounds: int) -> list[Run]:
    """All rivals, one after the other, `rounds` times. The order turns round every time."""
    out = folder / "out"
    size = sum(p.stat().st_size for p in base.rglob("*") if p.is_file())
    runs = []
    for k in range(rounds):
        for rival in rivals if k % 2 == 0 else rivals[::-1]:
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            read_all(base)
            read_all(adapter)
            touch_and_free(size + (1 << 30))
            run = timed(rival, commands(base, adapter, out)[rival])
            print(f"{k + 1}/{rounds} {rival:16} {run.seconds:7.2f} s {run.peak_mib:7.0f} MiB", file=sys.stderr)
            runs.append(run)
    shutil.rmtree(out, ignore_errors=True)
    return runs


def summary(runs: list[Run], rivals: list[str]) -> list[dict[str, object]]:
    """Median of each rival, and its ratio to the first one: of medians, and the median of the rounds' own ratios."""
    reference = [r.seconds for r in runs if r.rival == rivals[0]]
    rows: list[dict[str, object]] = []
    for rival in rivals:
        mine = [r for r in runs if r.rival == rival]
        seconds = [r.seconds for r in mine]
        rows.append(
            {
                "rival": rival,
                "median_seconds": round(statistics.median(seconds), 3),
                "min_seconds": round(min(seconds), 3),
                "ratio_of_medians": round(statistics.median(seconds) / statistics.median(reference), 2),
                "median_of_ratios": round(statistics.median(a / b for a, b in zip(seconds, reference, strict=True)), 2),
                "cpu_seconds": round(statistics.median(r.cpu_seconds for r in mine), 2),
                "peak_mib": round(max(r.peak_mib for r in mine)),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "suture-bench")
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--targets", choices=TARGETS, default="all")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rivals", nargs="+", choices=sorted(commands(HERE, HERE, HERE)))
    parser.add_argument("--engine-only", action="store_true", help="without the command line: a plan made by hand")
    parser.add_argument("--results", type=Path, help="prefix of the .json and .md files; default: in the folder")
    args = parser.parse_args()
    rivals = args.rivals or (["cp", "engine"] if args.engine_only else ["cp", "suture-fast", "cp-fsync", "suture"])
    making = [sys.executable, str(HERE / "make_checkpoint.py"), str(args.folder), "--size", args.size]
    subprocess.run([*making, "--targets", args.targets, "--rank", str(args.rank)], check=True)  # its memory is not ours
    base, adapter = make(args.folder, args.size, args.targets, args.rank)
    runs = measure(rivals, base, adapter, args.folder, args.rounds)
    rows = summary(runs, rivals)
    facts = {
        "size": args.size,
        "targets": args.targets,
        "rank": args.rank,
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    table = markdown(rows, facts)
    results = args.results or args.folder / f"merge-{args.size}-{args.targets}"
    results.with_suffix(".json").write_text(
        json.dumps({"facts": facts, "summary": rows, "runs": [asdict(r) for r in runs]}, indent=2)
    )
    results.with_suffix(".md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
