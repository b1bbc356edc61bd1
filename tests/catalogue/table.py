"""Prints the numbers: healthy adapters by family and method with their alarms, mutants by kind and outcome.

python tests/catalogue/table.py [healthy|mutants]        all by default; some minutes
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parents[1])]
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")

OUTCOMES = ("found", "base", "refused", "harmless", "survives", "crashed")


def main(what: str, root: Path) -> None:
    import torch
    import transformers
    from workshop import Workshop

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    shop = Workshop(root)
    if what in ("all", "healthy"):
        show_healthy(shop)
    if what in ("all", "mutants"):
        show_mutants(shop, root / "mutants")


def show_healthy(shop) -> None:
    """A line a family, a column a method."""
    from healthy import HEALTHY
    from verdicts import loud, of_pair

    methods = sorted({h.method for h in HEALTHY.values()})
    counts = Counter((h.family, h.method) for h in HEALTHY.values())
    alarms = []
    for healthy in HEALTHY.values():
        pair = shop.pair(healthy)
        alarms += [f"{healthy.id}: {f.code} {f.found}" for f in loud(of_pair(pair.base, pair.adapter, pair.reading))]
    print(f"{'':16}", *(f"{m[:7]:>7}" for m in methods), f"{'all':>5}")
    for family in dict.fromkeys(h.family for h in HEALTHY.values()):
        row = [counts[family, m] for m in methods]
        print(f"{family:16}", *(f"{n or '':>7}" for n in row), f"{sum(row):5}")
    print(f"{len(HEALTHY)} healthy adapters, {len(alarms)} false alarms", *alarms, sep="\n")


def show_mutants(shop, folder: Path) -> None:
    """A line a kind of mutant, a column an outcome, then the codes that told."""
    import test_mutants  # fills MUTATORS
    from healthy import HEALTHY
    from mutants import MUTATORS, SUBJECTS, mutants_of
    from survivors import NOTHING_TELLS

    table: dict[str, Counter[str]] = defaultdict(Counter)
    told: dict[str, Counter[str]] = defaultdict(Counter)
    strange = []
    for subject in SUBJECTS:
        mutants = list(mutants_of(shop, HEALTHY[subject], folder))
        strange += test_mutants.unexpected(mutants)
        for m in mutants:
            table[m.kind][m.outcome] += 1
            told[m.kind].update(m.codes if m.outcome in ("found", "base") else ())
    print(f"{'':4} {'':64}", *(f"{o:>8}" for o in OUTCOMES))
    for kind, row in table.items():
        shown = " ".join(code for code, _ in told[kind].most_common(4))
        print(f"{MUTATORS[kind].mode:4} {kind:64}", *(f"{row[o] or '':>8}" for o in OUTCOMES), "", shown)
    total = sum(table.values(), Counter())
    print(f"{'':4} {f'{total.total()} mutants':64}", *(f"{total[o]:>8}" for o in OUTCOMES))
    print("Unexpected:", *(f"{m.kind} | {m.subject} | {m.outcome} {m.detail}" for m in strange), sep="\n")
    survivors = {kind for kind, row in table.items() if row["survives"]}
    listed = NOTHING_TELLS.keys()
    print("Listed as survivors, and found now:", *sorted(listed - survivors), sep="\n")
    print("Never applicable:", *(MUTATORS.keys() - table.keys()), sep="\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        os.environ["SUTURE_CACHE"] = f"{root}/cache"
        main(sys.argv[1] if len(sys.argv) > 1 else "all", Path(root))
