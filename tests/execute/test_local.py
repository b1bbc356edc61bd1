"""The engine: the same bytes whoever does the work, and a failure that stops everybody and says where."""

import itertools
import os
import signal
import threading
from pathlib import Path

import pytest
from execute.made_plans import contents, make_pair, make_plan
from threadpoolctl import threadpool_info, threadpool_limits

from suture import execute
from suture.errors import Interrupted, SutureError
from suture.execute import fused, kernel, local, pieces, staging
from suture.execute.local import Queue, count_workers
from suture.execute.pieces import Piece, Span, split
from suture.methods.base import Method
from suture.values import Running, TensorInfo, Verdict

GOOD = Verdict(True, ())


@pytest.fixture
def pair(tmp_path):
    return make_pair(tmp_path / "in", n_shards=3, rows=500)


@pytest.fixture
def plan(pair):
    return make_plan(pair)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 10_000)


def test_any_number_of_workers_gives_the_same_bytes(pair, plan, tmp_path):
    assert len(split(plan)) > 20
    merged = {
        n: contents(execute.publish(execute.run(plan, pair.inputs, tmp_path / f"out{n}", Running(workers=n)), GOOD))
        for n in (1, 2, 4, 16)
    }
    assert merged[2] == merged[1]
    assert merged[4] == merged[1]
    assert merged[16] == merged[1]


def test_a_worker_stays_on_its_file_then_takes_a_fresh_one_then_helps(plan):
    queue = Queue(split(plan))
    one, two = queue.take(""), queue.take("")
    assert one.file != two.file
    files = [one.file]
    while (taken := queue.take(files[-1])) is not None:
        files.append(taken.file)
    third = ({f.name for f in plan.files} - {one.file, two.file}).pop()
    changes = [files[0], *(b for a, b in itertools.pairwise(files) if a != b)]
    assert changes == [one.file, third, two.file]


def test_a_fresh_file_comes_before_helping_with_a_larger_one():
    span = Span("base", TensorInfo("t", "U8", (9,), "in", 0, 9), 0)
    queue = Queue(
        [Piece(0, "a small one", 0, 9, (span,)), *(Piece(k, "large", k, k + 9, (span,)) for k in range(1, 9))]
    )
    assert [queue.take("").file for _ in range(3)] == ["large", "a small one", "large"]


def test_every_piece_is_taken_once(plan):
    queue = Queue(split(plan))
    taken, last = [], ""
    while (found := queue.take(last)) is not None:
        taken.append(found.number)
        last = found.file
    assert sorted(taken) == list(range(len(split(plan))))


def test_the_number_of_workers():
    assert count_workers(4, 100) == 4
    assert count_workers(4, 2) == 2
    assert count_workers(None, 0) == 1
    assert count_workers(None, 1000) >= 1


def test_progress_adds_up_to_the_output(pair, plan, tmp_path):
    seen = []
    execute.abandon(execute.run(plan, pair.inputs, tmp_path / "out", progress=seen.append))
    assert sum(seen) == plan.n_bytes_written
    assert all(n > 0 for n in seen)


def test_what_is_written_in_order_is_hashed_without_reading_it_again(pair, plan, tmp_path, monkeypatch):
    n_bytes, preadv = [], os.preadv

    def count(fd, buffers, offset):
        n = preadv(fd, buffers, offset)
        n_bytes.append(n if ".out.suture" in str(Path(f"/proc/self/fd/{fd}").readlink()) else 0)
        return n

    monkeypatch.setattr(os, "preadv", count)
    execute.abandon(execute.run(plan, pair.inputs, tmp_path / "out", Running(workers=1)))
    assert sum(n_bytes) == 0


def failing(monkeypatch, error: BaseException) -> None:
    def rows(w, f, s, i):
        raise error

    monkeypatch.setattr(kernel, "METHODS", {"lora": Method({}, rows=rows)})
    monkeypatch.setattr(fused, "load", lambda: None)


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError(), ZeroDivisionError("by zero")])
def test_a_formula_that_fails_is_named_with_its_tensor(pair, plan, tmp_path, monkeypatch, error):
    failing(monkeypatch, error)
    with pytest.raises(SutureError, match=rf"model-\d+-of-00003\.safetensors: w\d: {type(error).__name__}") as raised:
        execute.run(plan, pair.inputs, tmp_path / "out", Running(workers=2))
    assert raised.value.__cause__ is error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_a_failure_stops_the_other_workers(pair, plan, tmp_path, monkeypatch):
    """The first block fails; the others wait for the flag, so they only end if it reaches them."""
    stops = []
    begin = threading.Barrier(3)
    work = local.work

    def remember(workers, queue, stop, progress):
        stops.append(stop)
        work(workers, queue, stop, progress)

    def rows(w, f, s, i):
        if begin.wait(timeout=30) == 0:
            raise ValueError("first")
        while not stops[0].requested:
            threading.Event().wait(0.001)
        return w

    monkeypatch.setattr(execute, "work", remember)
    monkeypatch.setattr(kernel, "METHODS", {"lora": Method({}, rows=rows)})
    monkeypatch.setattr(fused, "load", lambda: None)
    with pytest.raises(SutureError, match="ValueError: first"):
        execute.run(plan, pair.inputs, tmp_path / "out", Running(workers=3))


def test_a_signal_that_comes_last_is_heard(pair, plan, tmp_path, monkeypatch):
    """While the disk takes the folders, after everything else."""
    monkeypatch.setattr(staging, "sync_path", lambda folder: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        execute.run(plan, pair.inputs, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_a_worker_has_one_blas_thread(pair, plan, tmp_path, monkeypatch):
    threads = set()

    def rows(w, f, s, i):
        threads.update(lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas")
        return w

    monkeypatch.setattr(kernel, "METHODS", {"lora": Method({}, rows=rows)})
    with threadpool_limits(2, "blas"):
        execute.abandon(execute.run(plan, pair.inputs, tmp_path / "out"))
    assert threads <= {1}


def test_an_interrupted_progress_bar_interrupts_the_run(pair, plan, tmp_path):
    def progress(n_bytes):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="stopped"):
        execute.run(plan, pair.inputs, tmp_path / "out", progress=progress)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_it_runs_outside_of_the_main_thread(pair, plan, tmp_path):
    found: list[Path] = []
    thread = threading.Thread(
        target=lambda: found.append(execute.publish(execute.run(plan, pair.inputs, tmp_path / "out"), GOOD))
    )
    thread.start()
    thread.join()
    assert found == [tmp_path / "out"]
