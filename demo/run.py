"""Trains an adapter on both ends of a tied embedding, merges it with PEFT and with Suture, and shows what came out.

Usage: python demo/run.py

Every step is a process of its own, so that its time and its memory are its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chart import kl_chart
from model import fetch_base
from rich.console import Console
from rich.markup import escape
from rich.table import Table

HERE = Path(__file__).parent
OUT = HERE / "out"
ISLAND = HERE / "island.jsonl"
TRUTH, BASE, PEFT, SUTURE, EXACT = "adapter, unmerged", "base", "PEFT's merge", "Suture's merge", "Suture's, in f32"
SHOWN = (1, 8, 16)  # questions of the quiz that the table shows
# A thread that waits must not spin on a core that another process needs; no progress bars; no question to the Hub.
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step took."""

    seconds: float
    peak_bytes: int


def step(*arguments: str | Path) -> Cost:
    """Runs Python on `arguments`; ends the demo if that fails."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *map(str, arguments)], env=ENVIRONMENT, stdin=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{Path(arguments[0]).name} ended with exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(time.monotonic() - start, usage.ru_maxrss * unit)


def main() -> None:
    """The five steps of the demo."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    start = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()

    console.print("[bold]1. The base model: SmolLM2-135M-Instruct, tied embeddings, bf16[/]")
    step(HERE / "model.py")
    base, adapter = fetch_base(), OUT / "run" / "adapter"

    console.print("\n[bold]2. An adapter: LoRA on attention, embed_tokens and lm_head, taught an invented island[/]")
    step("-m", "suture", "train", HERE / "island.yaml", f"base={base}", f"out={OUT / 'run'}", f"data.train={ISLAND}")

    console.print("\n[bold]3. The same adapter, merged three times[/]")
    folders = {BASE: base, PEFT: OUT / "merged-peft", SUTURE: OUT / "merged-suture", EXACT: OUT / "merged-suture-f32"}
    costs = {
        PEFT: step(HERE / "merge_peft.py", base, adapter, folders[PEFT]),
        SUTURE: step("-m", "suture", "merge", base, adapter, "-o", folders[SUTURE]),
        EXACT: step("-m", "suture", "merge", base, adapter, "-o", folders[EXACT], "--dtype", "f32"),
    }

    console.print("\n[bold]4. Each folder, loaded from disk, against base + live adapter[/]")
    result = OUT / "results.json"
    named = [f"{name}={folder}" for name, folder in folders.items()]
    step(HERE / "compare.py", base, adapter, result, *named)
    found = json.loads(result.read_text(encoding="utf-8"))
    found["costs"] = {name: asdict(cost) for name, cost in costs.items()}
    result.write_text(json.dumps(found, indent=1), encoding="utf-8")

    console.print()
    console.print(table(found, costs))
    console.print(remarks(found, costs))

    kl = {name: found["models"][name]["mean_kl"] for name in folders}
    (OUT / "kl.svg").write_text(kl_chart(kl, "Distance from base + live adapter"), encoding="utf-8")
    console.print(f"[bold]5. Made in {time.monotonic() - start:.0f} s[/]")
    for path in (adapter, *list(folders.values())[1:], result, OUT / "kl.svg"):
        console.print(f"   {path.relative_to(HERE.parent)}", highlight=False)


def table(found: dict[str, Any], costs: dict[str, Cost]) -> Table:
    """Answers and measures, side by side."""
    models, columns = found["models"], (BASE, TRUTH, PEFT, SUTURE)
    rows = Table(show_lines=True)
    for name in ("", BASE, f"{TRUTH}\n(the truth)", PEFT, SUTURE):
        rows.add_column(name, ratio=1, overflow="fold")
    for number in SHOWN:
        rows.add_row(found["questions"][number], *(escape(models[name]["answers"][number]) for name in columns))
    n = len(found["questions"])
    rows.add_row("right answers", *(f"{models[name]['score']} of {n}" for name in columns))
    rows.add_row("mean KL to the truth", *(measure(models[name], "mean_kl", "{:.2g} nats") for name in columns))
    rows.add_row("same most likely token", *(measure(models[name], "top1", "{:.1%}") for name in columns))
    rows.add_row("time to merge", *(f"{costs[name].seconds:.1f} s" if name in costs else "" for name in columns))
    megabytes = {name: f"{cost.peak_bytes / 1e6:,.0f} MB" for name, cost in costs.items()}
    rows.add_row("peak memory", *(megabytes.get(name, "") for name in columns))
    return rows


def remarks(found: dict[str, Any], costs: dict[str, Cost]) -> str:
    """What the table does not say."""
    exact, again = found["models"][EXACT]["mean_kl"], costs[EXACT]
    return (
        "embed_tokens and lm_head are one tensor. PEFT warns of complications and adds both updates to it;\n"
        "Suture gives each its own. What is left of Suture's KL is the rounding to bf16: written in float32 by\n"
        f"--dtype f32, it is {exact:.1e} nats. That second merge took {again.seconds:.1f} s and "
        f"{again.peak_bytes / 1e6:,.0f} MB, because\n"
        "Suture keeps its description of a model class; the first may have had to make it.\n"
    )


def measure(model: dict[str, Any], key: str, form: str) -> str:
    """A measure as text; nothing for the truth, which has no distance to itself."""
    return form.format(model[key]) if key in model else ""


if __name__ == "__main__":
    main()
