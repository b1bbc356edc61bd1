"""Time merges against a plain copy of the base, and against PEFT, in alternating rounds; write JSON and Markdown.

    python benchmarks/bench_merge.py                      every case below (an hour, 60 GB of disk)
    python benchmarks/bench_merge.py --cases 1b 3b --rounds 5

Memory that a virtual machine has given back to its host is slow to touch again. So right before every timed run the
base is copied and the copy removed: the memory that the run needs was in use a moment ago. The inputs were read by
that (warm), or are dropped from the page cache (cold; needs root). Outputs are removed and the disk is idle before each
run. Times are of whole processes, start-up included.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from make_checkpoint import make
from table import markdown

HERE = Path(__file__).resolve().parent
PACKAGES = ("suture", "numpy", "torch", "transformers", "peft")
FAST = ("--durability", "fast", "--hash", "none")


@dataclass(frozen=True)
class Case:
    """A pair of models, and who merges it. The first rival is what the others are measured against."""

    model: str
    targets: str = "all"
    rivals: tuple[str, ...] = (
        "cp",
        "suture fast",
        "suture fast sha256",
        "suture fast full-verify",
        "cp sync",
        "suture",
    )
    cold: bool = False


CASES = {
    "1b": Case("1b", rivals=(*Case.rivals, "suture fast numpy", "peft")),
    "3b": Case(
        "3b", rivals=("cp", "suture fast", "suture fast numpy", "suture fast sha256", "cp sync", "suture", "peft")
    ),
    "3b-attention": Case("3b", "attention", ("cp", "suture fast", "suture fast numpy")),
    "3b-early-link": Case("3b", "early", ("cp", "suture fast", "suture fast link", "suture")),
    "3b-cold": Case("3b", rivals=("cp", "suture fast", "cp sync", "suture"), cold=True),
    "8b": Case("8b", rivals=("cp", "suture fast", "cp sync", "suture")),
    "moe": Case("moe", rivals=("cp", "suture fast", "cp sync", "suture")),
    "gpt2": Case("gpt2", rivals=("cp", "suture fast", "suture fast numpy", "peft")),
}


@dataclass(frozen=True)
class Run:
    """One timed run of one rival."""

    rival: str
    seconds: float
    cpu_seconds: float
    peak_mib: float


def command(rival: str, base: Path, adapter: Path, out: Path) -> tuple[list[str], dict[str, str]]:
    """The command of a rival, and its environment."""
    triple = [str(base), str(adapter), str(out)]
    if rival == "cp":
        return ["cp", "-r", str(base), str(out)], {}
    if rival == "cp sync":
        return ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/* "$1"', str(base), str(out)], {}
    if rival == "peft":
        return [sys.executable, str(HERE / "run_peft.py"), *triple], {}
    words = rival.split()[1:]
    options = [*FAST] if "fast" in words else []
    options = ["--durability", "fast"] if "sha256" in words else options
    options += ["--link"] if "link" in words else []
    options += ["--verify", "full"] if "full-verify" in words else []
    numpy = {"SUTURE_KERNEL": "numpy"} if "numpy" in words else {}
    merge = [sys.executable, "-m", "suture", "merge", str(base), str(adapter), "-o", str(out), "--json", *options]
    return merge, numpy


def prime(base: Path, adapter: Path, out: Path) -> None:
    """Copy the base and remove the copy; read the adapter."""
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(["cp", "-r", str(base), str(out)], check=True)
    shutil.copytree(adapter, out / "adapter")
    shutil.rmtree(out)
    os.sync()


def drop_caches() -> None:
    """Empty the page cache. Needs root."""
    Path("/proc/sys/vm/drop_caches").write_text("1")


def timed(rival: str, line: tuple[list[str], dict[str, str]]) -> Run:
    """Run a command to its end; its time, its CPU time and its peak memory."""
    words, environment = line
    begin = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}")
    return Run(rival, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(case: Case, base: Path, adapter: Path, folder: Path, rounds: int) -> list[Run]:
    """All rivals, one after the other, `rounds` times. The order turns round every time."""
    out = folder / "out"
    runs = []
    for k in range(rounds):
        for rival in case.rivals if k % 2 == 0 else case.rivals[::-1]:
            if rival == "peft" and k % 2:
                continue  # ten times as long as all others: in every second round
            prime(base, adapter, out)
            if case.cold:
                drop_caches()
            run = timed(rival, command(rival, base, adapter, out))
            print(f"{k + 1}/{rounds} {rival:24} {run.seconds:7.2f} s {run.peak_mib:7.0f} MiB", file=sys.stderr)
            runs.append(run)
    shutil.rmtree(out, ignore_errors=True)
    return runs


def summary(runs: Sequence[Run], rivals: Sequence[str], n_bytes: int) -> list[dict[str, object]]:
    """Medians of each rival, and the ratio of its median to that of the copy that is as durable."""
    rows: list[dict[str, object]] = []
    medians = {r: statistics.median(x.seconds for x in runs if x.rival == r) for r in rivals}
    for rival in rivals:
        mine = [r for r in runs if r.rival == rival]
        against = "cp sync" if rival in ("suture", "cp sync") and "cp sync" in medians else rivals[0]
        rows.append(
            {
                "rival": rival,
                "rounds": len(mine),
                "median_seconds": round(medians[rival], 3),
                "min_seconds": round(min(r.seconds for r in mine), 3),
                "against": against,
                "ratio": round(medians[rival] / medians[against], 2),
                "seconds_per_gb": round(medians[rival] / n_bytes * 1e9, 3),
                "cpu_seconds": round(statistics.median(r.cpu_seconds for r in mine), 2),
                "peak_mib": round(max(r.peak_mib for r in mine)),
            }
        )
    return rows


def machine() -> dict[str, object]:
    """Where this was measured, and with what."""
    cpu = next((x.partition(":")[2].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), "?")  # noqa: PTH123, SIM115
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "suture-bench")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rivals", nargs="+", help="only these; the first one is what the others are measured against")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the .json and the .md file")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    facts, found, texts = machine(), {}, []
    for name in args.cases:
        case = CASES[name]
        rivals = tuple(args.rivals or case.rivals)
        case = Case(case.model, case.targets, rivals, case.cold)
        making = [sys.executable, str(HERE / "make_checkpoint.py"), str(args.folder), "--model", case.model]
        subprocess.run([*making, "--targets", case.targets], check=True, stdout=subprocess.DEVNULL)  # not our memory
        base, adapter = make(args.folder, case.model, case.targets)
        n_bytes = sum(p.stat().st_size for p in base.rglob("*") if p.is_file())
        runs = measure(case, base, adapter, args.folder, args.rounds)
        rows = summary(runs, case.rivals, n_bytes)
        state = "cold" if case.cold else "warm"
        what = {"model": case.model, "adapter on": case.targets, "GB": f"{n_bytes / 1e9:.2f}", "cache": state}
        texts.append(markdown(rows, what))
        print(texts[-1])
        found[name] = {"case": asdict(case), "n_bytes": n_bytes, "summary": rows, "runs": [asdict(r) for r in runs]}
        (args.results / "merge.json").write_text(json.dumps({"machine": facts, "cases": found}, indent=2))
        head = ", ".join(f"{key} {value}" for key, value in facts.items())
        (args.results / "merge.md").write_text("\n".join([f"# Merge against copy\n\n{head}\n", *texts]))


if __name__ == "__main__":
    main()
