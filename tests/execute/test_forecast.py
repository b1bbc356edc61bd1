"""What a merge is said to need is what it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from execute.made_plans import make_pair, make_plan
from execute.test_memory import make

import suture
from suture import execute
from suture.errors import OutputExists, UsageError
from suture.execute import fused
from suture.execute.forecast import PROCESS_BYTES, Rates, memory, seconds, workers_within
from suture.execute.pieces import split
from suture.execute.probe import probe
from suture.values import Running

MIB = 1 << 20


@pytest.fixture
def pair(tmp_path):
    return make_pair(tmp_path / "in", rows=3000)


@pytest.fixture
def plan(pair):
    return make_plan(pair)


@pytest.mark.parametrize("kernel", ["compiled", "numpy"])
def test_memory_is_enough_and_not_much_more(tmp_path, kernel):
    """Against a merge in a process of its own, which prints its peak."""
    import pickle

    make(tmp_path, 30_000)
    plan, _ = pickle.loads((tmp_path / "merge.pickle").read_bytes())
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(tests), str(Path(suture.__path__[0]).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "SUTURE_KERNEL": "numpy" if kernel == "numpy" else ""}
    command = [sys.executable, str(tests / "execute" / "test_memory.py"), str(tmp_path)]
    found = subprocess.run(command, env=environment, capture_output=True, check=True)
    peak = float(found.stdout) * MIB
    assert peak <= memory(plan, 2) <= 2 * peak


def test_workers_are_left_out_to_stay_within(plan):
    n_pieces = len(split(plan))
    one, two = memory(plan, 1), memory(plan, 2)
    assert PROCESS_BYTES < one < two
    assert workers_within(plan, Running(workers=2, max_memory=two), n_pieces) == 2
    assert workers_within(plan, Running(workers=2, max_memory=two - 1), n_pieces) == 1
    with pytest.raises(UsageError, match=r"needs about .* MiB of memory with one worker"):
        workers_within(plan, Running(workers=2, max_memory=one - 1), n_pieces)


def test_a_merge_that_may_not_take_as_much_is_refused_before_it_writes(pair, plan, tmp_path):
    with pytest.raises(UsageError):
        execute.run(plan, pair.inputs, tmp_path / "out", Running(max_memory=1 * MIB))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_time_is_that_of_the_bytes(plan):
    pieces = split(plan)
    computed = sum(op.end - op.begin for op in plan.operations if not op.is_copy)
    n_bytes = sum(piece.n_bytes for piece in pieces)
    still = seconds(pieces, Rates(0.0, 0.0, 0.0), 1)
    assert seconds(pieces, Rates(0.0, 1.0, 0.0), 1) - still == pytest.approx(1.15 * computed)
    assert seconds(pieces, Rates(1.0, 0.0, 0.0), 2) - still == pytest.approx(1.15 * (n_bytes - computed) / 2)
    assert seconds(pieces, Rates(0.0, 0.0, 2.0), 2) - still == pytest.approx(2 * n_bytes)


@pytest.mark.parametrize("durable", [True, False])
def test_the_probe_leaves_nothing(pair, plan, tmp_path, durable):
    rates = probe(split(plan), pair.inputs, tmp_path, fused.load(), durable=durable)
    assert rates.computed > 0
    assert (rates.synced > 0) is durable
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_bytes_are_those_of_the_output(pair, plan, tmp_path):
    found = execute.forecast(plan, pair.inputs, tmp_path / "out")
    assert found.seconds is not None
    assert execute.forecast(plan, pair.inputs, None).seconds is None
    staged = execute.run(plan, pair.inputs, tmp_path / "out")
    n_bytes = sum(p.stat().st_size for p in staged.folder.rglob("*") if p.is_file())
    assert n_bytes <= found.n_bytes_disk <= n_bytes + 8192
    assert found.n_bytes_copied + found.n_bytes_computed == plan.n_bytes_written
    execute.abandon(staged)


def test_an_output_that_is_there_is_told_before(pair, plan, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    with pytest.raises(OutputExists):
        execute.forecast(plan, pair.inputs, tmp_path / "out")
