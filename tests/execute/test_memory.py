"""Peak memory is that of buffers, not of models: a fixed sum, however large the tensors and the adapter are."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from execute.made_plans import Pair, operation, place

import suture
from suture import execute
from suture.values import Running, Term, View

MIB = 1 << 20
LIMIT_MIB = 100
COLS, RANK = 512, 128


def make(folder: Path, rows: int) -> None:
    """Write inputs and plan of a merge: an embedding with transposed factors, a head, and a tensor to be copied."""
    pair = Pair(folder)
    zeros = np.zeros((rows, COLS), np.float32)
    pair.add_shard("one.safetensors", {"embedding": ("BF16", zeros), "copied": ("F32", zeros)})
    pair.add_shard("two.safetensors", {"head": ("BF16", zeros)})
    pair.add_adapter(
        {
            "embedding.A": ("F32", np.ones((RANK, rows))),
            "embedding.B": ("F32", np.ones((COLS, RANK))),
            "head.A": ("F32", np.ones((RANK, COLS))),
            "head.B": ("F32", np.ones((rows, RANK))),
        }
    )
    a, b = View.whole(pair.adapter["embedding.A"]), View.whole(pair.adapter["embedding.B"])
    embedding = Term("lora", "embedding", {"B": a.T, "A": b.T}, 1.0, 0, rows, RANK)
    block = {"block_rows": 512}
    plan = place(
        [
            operation(pair.base["embedding"], [embedding], **block),
            operation(pair.base["copied"], why="copy"),
            operation(pair.base["head"], [pair.lora("head", rows)], **block),
        ]
    )
    (folder / "merge.pickle").write_bytes(pickle.dumps((plan, pair.inputs)))


def peak_mib() -> float:
    """The largest resident size of this process so far."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_the_peak_does_not_grow_with_the_model(tmp_path):
    peaks = {}
    for rows in (3_000, 30_000):
        make(tmp_path / str(rows), rows)
        command = [sys.executable, __file__, str(tmp_path / str(rows))]
        path = os.pathsep.join([str(Path(__file__).parent.parent), str(Path(suture.__path__[0]).parent)])
        found = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=True)
        peaks[rows] = float(found.stdout)
    assert peaks[30_000] < LIMIT_MIB
    assert peaks[30_000] - peaks[3_000] < 25


def main() -> None:
    """In a process of its own: merge what the test has made, and print the peak."""
    folder = Path(sys.argv[1])
    plan, inputs = pickle.loads((folder / "merge.pickle").read_bytes())
    execute.abandon(execute.run(plan, inputs, folder / "out", Running(workers=2)))
    print(peak_mib())


if __name__ == "__main__":
    main()
