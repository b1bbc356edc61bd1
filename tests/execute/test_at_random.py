"""Rows that are rounded at random: the same bytes by any code and any cut, and on average what was not rounded."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os

import numpy as np
import pytest
from execute.made_plans import Pair, contents, make_pair, make_plan, operation, place, read_input
from hypothesis import given, settings
from hypothesis import strategies as st

from suture import compiled, execute, noise
from suture.errors import DiskFull
from suture.execute import at_random, fused, pieces
from suture.execute.at_random import round_at_random
from suture.execute.device import Device
from suture.execute.kernel import Kernel
from suture.execute.pieces import Rows
from suture.factors import FactorReader
from suture.formats import TensorReader
from suture.formats.dtypes import DTYPES, from_float, from_float_at_random, to_float
from suture.values import Running, Source, Term, Verdict, View

GOOD = Verdict(True, ())
ROWS, COLS, RANK, SEED = 150, 40, 4, 11
SIXTEEN = ("BF16", "F16")


def rounded(v, dtype, key, start=0):
    out = np.empty(v.shape, DTYPES[dtype].storage)
    round_at_random(v, dtype, key, start, out)
    return out


def by_numpy(monkeypatch):
    """No compiled code from here on."""
    monkeypatch.setattr(at_random, "_functions", dict)
    monkeypatch.setattr(noise, "_compiled", lambda: None)


@pytest.mark.skipif(bool(compiled.why_not()), reason="the compiled code was not built")
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3000), st.integers(0, 3000), st.sampled_from(SIXTEEN))
def test_compiled_code_gives_the_bytes_of_numpy(seed, n, start, dtype):
    """Any patterns, infinities, NaN, the ends of the range, subnormals, and cuts anywhere."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 2**32, n, dtype=np.uint32)
    ends = [0, 1, 0x7F7F0000, 0x7F7F4000, 0x7F7FC000, 0x477FE000, 0x477FE800, 0x477FF800, 0x7F800000, 0x7FC00000]
    for where in (rng.random(n) < 0.2, rng.random(n) < 0.2):
        patterns[where] = rng.choice(ends, where.sum()) | rng.integers(0, 2, where.sum()) << 31
    where = rng.random(n) < 0.3
    patterns[where] = rng.integers(0x32000000, 0x39000000, where.sum())  # where float16 has subnormals
    v, key = patterns.view(np.float32), noise.key(seed, "w")
    bits = noise.by_numpy(key, start, n)
    with np.errstate(all="ignore"):
        assert rounded(v, dtype, key, start).tobytes() == from_float_at_random(v, dtype, bits).tobytes()


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("chunk", [1, 7, 64, 100, 1 << 20])
def test_chunks_change_no_byte(monkeypatch, dtype, chunk):
    v, key = np.random.default_rng(0).standard_normal(3000).astype(np.float32), noise.key(1, "w")
    whole = rounded(v, dtype, key, 5)
    parts = [rounded(v[at : at + chunk], dtype, key, 5 + at) for at in range(0, 3000, chunk)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    by_numpy(monkeypatch)
    monkeypatch.setattr(at_random, "CHUNK_VALUES", chunk)
    assert rounded(v, dtype, key, 5).tobytes() == whole.tobytes()


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_the_average_over_seeds_is_the_value(dtype):
    """Within five standard errors of the mean, value by value and all together; float16's subnormals among them."""
    n, n_seeds = 4000, 400
    rng = np.random.default_rng(0)
    v = (rng.standard_normal(n) * 10.0 ** rng.uniform(-8, 0, n)).astype(np.float32)
    low = to_float(from_float_at_random(v, dtype, np.zeros(n, np.uint32)), dtype).astype(np.float64)
    high = to_float(from_float_at_random(v, dtype, np.full(n, 2**32 - 1, np.uint32)), dtype).astype(np.float64)
    found = np.mean([to_float(rounded(v, dtype, noise.key(s, "w")), dtype) for s in range(n_seeds)], axis=0, dtype="f8")
    p = (v - low) / np.where(high == low, 1, high - low)
    error = np.abs(high - low) * np.sqrt(p * (1 - p) / n_seeds)
    away = np.divide(found - v, error, out=np.zeros(n), where=error > 0)
    assert np.abs(away[p * (1 - p) * n_seeds > 10]).max() < 5
    assert abs(away.sum()) < 5 * n**0.5
    nearest = np.abs(to_float(from_float(v, dtype), dtype) - v.astype(np.float64))
    assert np.abs(found - v).mean() < nearest.mean() / 4


@pytest.fixture
def pair(tmp_path) -> Pair:
    random = np.random.default_rng(3)
    made = Pair(tmp_path)
    shapes = {"w": (ROWS, COLS), "odd": (7, 13)}
    tensors = {f"{n}.{d}": (d, random.normal(size=s)) for n, s in shapes.items() for d in DTYPE}
    made.add_shard("m.safetensors", tensors)
    made.add_adapter(
        {
            "w.A": ("F32", random.normal(size=(RANK, COLS)) / 100),
            "w.B": ("F32", random.normal(size=(ROWS, RANK)) / 100),
            "w.m": ("F32", random.uniform(5, 7, ROWS)),
            "odd.A": ("F32", random.normal(size=(RANK, 13)) / 100),
            "odd.B": ("F32", random.normal(size=(7, RANK)) / 100),
            "full": ("F32", random.normal(size=(9, COLS))),
        }
    )
    return made


DTYPE = ("BF16", "F16", "F32", "F64")


@pytest.fixture(params=["numpy", "compiled", "torch"])
def compute(pair, request, monkeypatch):
    """Runs one operation, as one step or as several, and returns the stored rows."""
    if request.param == "numpy":
        by_numpy(monkeypatch)
    formulas = {"numpy": lambda: None, "compiled": fused.load, "torch": lambda: Device("cpu")}[request.param]()

    def run(op, cuts=()):
        (op,) = place([op]).operations
        found = np.zeros(op.end - op.begin, np.uint8)
        with TensorReader(pair.folder / "base") as base, TensorReader(pair.folder / "adapter") as adapter:
            kernel = Kernel({"base": base, "adapter": adapter}, FactorReader(pair.adapter, adapter), formulas)
            for start, stop in itertools.pairwise([0, *cuts, op.rows]):
                for offset, values in kernel.run(Rows(op, start, stop)):
                    raw = values.reshape(-1).view("u1")
                    found[offset - op.begin :][: raw.size] = raw
        return found.view(DTYPES[op.dtype].storage).reshape(op.rows, op.cols)

    return run


def seeded(op, seed=SEED):
    return dataclasses.replace(op, seed=seed)


def bits_of(op, seed=SEED):
    return noise.by_numpy(noise.key(seed, op.tensor), 0, op.rows * op.cols).reshape(op.rows, op.cols)


@pytest.mark.parametrize(("name", "method"), [("w", "lora"), ("w", "dora"), ("odd", "lora")])
@pytest.mark.parametrize("given", DTYPE)
@pytest.mark.parametrize("out", SIXTEEN)
def test_the_float32_result_is_rounded_by_the_bits_of_each_place(pair, compute, given, out, name, method):
    info = pair.base[f"{name}.{given}"]
    term = pair.lora(name, info.shape[0])
    if method == "dora":
        m = View.whole(pair.adapter[f"{name}.m"])
        term = dataclasses.replace(term, method="dora", factors={**term.factors, "m": m})
    op = operation(info, [term], dtype=out)
    exact = compute(dataclasses.replace(op, dtype="F64" if given == "F64" else "F32"))
    found = compute(seeded(op))
    assert found.tobytes() == from_float_at_random(exact, out, bits_of(op)).tobytes()
    assert found.tobytes() != compute(op).tobytes()
    assert found.tobytes() != compute(seeded(op, SEED + 1)).tobytes()
    assert found.tobytes() != compute(seeded(dataclasses.replace(op, tensor="twin"))).tobytes()


@pytest.mark.parametrize("block_rows", [16, 33, 64, 150])
def test_blocks_and_steps_change_no_bits(pair, compute, block_rows):
    """Products of other heights may round otherwise in numpy; so here all is in the source."""
    a, b = View.whole(pair.adapter["w.A"]), View.whole(pair.adapter["w.B"])
    nothing = Term("lora", "w", {"A": a, "B": b}, 0.0, 0, ROWS, RANK)
    whole = compute(seeded(operation(pair.base["w.F32"], [nothing], dtype="BF16", block_rows=64)))
    op = seeded(operation(pair.base["w.F32"], [nothing], dtype="BF16", block_rows=block_rows))
    cuts = (block_rows * 2,) if block_rows * 3 <= ROWS else ()
    assert compute(op, cuts).tobytes() == whole.tobytes()


@pytest.mark.skipif(fused.load() is None, reason="the compiled kernel was not built")
def test_compiled_bytes_do_not_depend_on_blocks(pair):
    found = set()
    for block_rows in (1, 16, 33, 64, 150):
        (op,) = place(
            [seeded(operation(pair.base["w.BF16"], [pair.lora("w", ROWS)], block_rows=block_rows))]
        ).operations
        with TensorReader(pair.folder / "base") as base, TensorReader(pair.folder / "adapter") as adapter:
            kernel = Kernel({"base": base, "adapter": adapter}, FactorReader(pair.adapter, adapter), fused.load())
            found.add(b"".join(values.tobytes() for _, values in kernel.run(Rows(op, 0, ROWS))))
    assert len(found) == 1


def test_only_what_a_term_changes_is_random(pair, compute):
    """A cast of the base is to nearest; two terms, one after the other, are rounded once."""
    term = dataclasses.replace(pair.lora("w", 40, scale=1.0), start=30, stop=70)
    term = dataclasses.replace(term, factors={**term.factors, "B": View.whole(pair.adapter["w.B"]).cut(0, 0, 40)})
    op = operation(pair.base["w.F32"], [term, dataclasses.replace(term, scale=0.5)], dtype="BF16", block_rows=32)
    exact, found = compute(dataclasses.replace(op, dtype="F32")), compute(seeded(op))
    changed, bits = slice(30, 70), bits_of(op)
    assert found[changed].tobytes() == from_float_at_random(exact[changed], "BF16", bits[changed]).tobytes()
    for rest in (slice(0, 30), slice(70, ROWS)):
        assert found[rest].tobytes() == from_float(exact[rest], "BF16").tobytes()


def test_a_full_tensor_of_the_adapter_is_random(pair, compute):
    info = pair.adapter["full"]
    op = operation(info, dtype="BF16", why="replace", source=Source("adapter", info), file="m.safetensors")
    exact = to_float(read_input(pair.folder / "adapter", info), "F32")
    assert compute(seeded(op)).tobytes() == from_float_at_random(exact, "BF16", bits_of(op)).tobytes()
    assert compute(op).tobytes() == from_float(exact, "BF16").tobytes()


def at_random_plan(made):
    plan = make_plan(made)
    return dataclasses.replace(plan, operations=tuple(seeded(op) if op.terms else op for op in plan.operations))


def test_neither_workers_nor_an_interruption_change_a_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 10_000)
    made = make_pair(tmp_path / "in", n_shards=3, rows=500)
    plan, left = at_random_plan(made), itertools.count()

    def merged(name, workers):
        staged = execute.run(plan, made.inputs, tmp_path / name, Running(workers=workers))
        return contents(execute.publish(staged, GOOD))

    whole = merged("out1", 1)
    assert whole != contents(execute.publish(execute.run(make_plan(made), made.inputs, tmp_path / "near"), GOOD))
    assert merged("out2", 2) == whole
    assert merged("out4", 4) == whole

    def failing(*arguments):
        if next(left) == 12:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(*arguments)

    pwrite = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        with pytest.raises(DiskFull, match="GB are free"):
            merged("out5", 2)
    assert b"\n+" in (tmp_path / ".out5.suture" / "journal").read_bytes()
    assert merged("out5", 2) == whole
