"""The kernel computes the formula in float32, block by block, and rounds once."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from execute.made_plans import Pair, operation, place, read_input

from suture.errors import FormatError, InputError, SutureError
from suture.execute import fused
from suture.execute import kernel as module
from suture.execute.device import Device
from suture.execute.kernel import Kernel, check_computable
from suture.execute.pieces import Rows
from suture.factors import FactorReader
from suture.formats import TensorReader
from suture.formats.dtypes import to_float
from suture.methods.base import Method
from suture.values import Source, Term, View

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
ROWS, COLS, RANK = 150, 40, 4


@pytest.fixture
def pair(tmp_path) -> Pair:
    random = np.random.default_rng(3)
    made = Pair(tmp_path)
    shapes = {"w": (ROWS, COLS), "experts": (3, 50, COLS), "b": (ROWS,)}
    tensors = {f"{n}.{d}": (d, random.normal(size=s)) for n, s in shapes.items() for d in TORCH}
    made.add_shard("m.safetensors", {**tensors, "ids": ("I64", np.arange(ROWS)), "f8": ("F8_E4M3", np.ones((8, 8)))})
    made.add_adapter(
        {
            "w.A": ("F32", random.normal(size=(RANK, COLS))),
            "w.B": ("F32", random.normal(size=(ROWS, RANK))),
            "tokens": ("BF16", random.normal(size=(2, COLS))),
            "ids": ("I64", np.arange(ROWS)),
        }
    )
    return made


@pytest.fixture(params=["numpy", "compiled", "torch"])
def formulas(request):
    """What computes LoRA: every test of a result must hold for each."""
    return {"numpy": lambda: None, "compiled": fused.load, "torch": lambda: Device("cpu")}[request.param]()


@pytest.fixture
def compute(pair, formulas):
    """Runs one operation, as one step or as several, and returns the stored rows."""

    def run(op, cuts=()):
        (op,) = place([op]).operations
        found = np.zeros(op.end - op.begin, np.uint8)
        bounds = [0, *cuts, op.rows]
        with TensorReader(pair.folder / "base") as base, TensorReader(pair.folder / "adapter") as adapter:
            kernel = Kernel({"base": base, "adapter": adapter}, FactorReader(pair.adapter, adapter), formulas)
            for start, stop in itertools.pairwise(bounds):
                for offset, values in kernel.run(Rows(op, start, stop)):
                    raw = values.reshape(-1).view("u1")
                    found[offset - op.begin :][: raw.size] = raw
        return found

    return run


def source(pair: Pair, name: str) -> np.ndarray:
    info = pair.base[name]
    return to_float(read_input(pair.folder / "base", info), info.dtype)


def factor(pair: Pair, name: str) -> np.ndarray:
    info = pair.adapter[name]
    return to_float(read_input(pair.folder / "adapter", info), info.dtype)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as torch rounds and stores them."""
    return torch.from_numpy(values).to(TORCH[dtype]).reshape(-1).view(torch.uint8).numpy()


@pytest.mark.parametrize("out", TORCH)
@pytest.mark.parametrize("given", TORCH)
def test_lora_in_every_dtype(pair, compute, given, out):
    op = operation(pair.base[f"w.{given}"], [pair.lora("w", ROWS)], dtype=out)
    working = np.float64 if "F64" in (given, out) else np.float32
    w, a, b = (x.astype(working) for x in (source(pair, f"w.{given}"), factor(pair, "w.A"), factor(pair, "w.B")))
    blocks = [slice(0, 64), slice(64, ROWS)]
    expected = np.concatenate([w[i] + (b[i] @ a) * working(0.5) for i in blocks])
    np.testing.assert_array_equal(compute(op), rounded(expected, out))


@pytest.mark.parametrize("out", TORCH)
@pytest.mark.parametrize("given", TORCH)
def test_a_cast(pair, compute, given, out):
    op = operation(pair.base[f"w.{given}"], dtype=out, why="cast")
    np.testing.assert_array_equal(compute(op), rounded(source(pair, f"w.{given}"), out))


def test_the_steps_do_not_change_the_bytes(pair, compute):
    op = operation(pair.base["w.BF16"], [pair.lora("w", ROWS)], block_rows=32)
    whole = compute(op)
    assert whole.any()
    np.testing.assert_array_equal(compute(op, cuts=(32, 96)), whole)


def test_terms_change_only_their_rows_and_follow_each_other(pair, compute):
    """Two experts: rows 40:80 get two terms, all others none."""
    b, a = View.whole(pair.adapter["w.B"]).cut(0, 10, 50), View.whole(pair.adapter["w.A"])
    term = Term("lora", "experts", {"A": a, "B": b}, 1.0, 40, 80, RANK)
    op = operation(pair.base["experts.F32"], [term, dataclasses.replace(term, scale=-1.0)], block_rows=32)
    once = dataclasses.replace(op, terms=op.terms[:1])
    w = source(pair, "experts.F32").reshape(-1, COLS)
    changed = compute(once).view(np.float32).reshape(-1, COLS)
    assert np.flatnonzero((changed != w).any(axis=1)).tolist() == list(range(40, 80))
    np.testing.assert_allclose(changed[40:80], w[40:80] + factor(pair, "w.B")[10:50] @ factor(pair, "w.A"), rtol=1e-5)
    np.testing.assert_allclose(compute(op).view(np.float32).reshape(-1, COLS), w, atol=1e-5)


def test_single_rows_are_replaced(pair, compute):
    view = View.whole(pair.adapter["tokens"])
    term = Term("trainable_tokens", "w", {"D": view}, 1.0, 0, ROWS, rows_changed=(140, 3))
    expected = source(pair, "w.BF16")
    expected[[140, 3]] = factor(pair, "tokens")
    op = operation(pair.base["w.BF16"], [term], block_rows=32)
    np.testing.assert_array_equal(compute(op, cuts=(64,)), rounded(expected, "BF16"))


def test_a_replacement_comes_from_the_adapter(pair, compute):
    new = pair.adapter["tokens"]
    op = operation(
        new, dtype="F32", why="replace", source=Source("adapter", new), shape=(1, COLS), file="m.safetensors"
    )
    op = dataclasses.replace(op, source=Source("adapter", new, row=1), block_rows=1)
    np.testing.assert_array_equal(compute(op).view(np.float32), factor(pair, "tokens")[1])


def test_prepare_sees_the_source_once_in_the_plans_blocks(pair, compute, monkeypatch):
    calls = []

    def prepare(blocks, f, s):
        calls.append([i for i, w in blocks()])
        return {**f, "total": np.sum([w.sum(axis=0, dtype=np.float64) for _, w in blocks()], axis=0)}

    method = Method({}, rows=lambda w, f, s, i: f["total"] + np.zeros_like(w), prepare=prepare)
    monkeypatch.setattr(module, "METHODS", {"sum": method})
    term = Term("sum", "w", {}, 1.0, 10, ROWS)
    op = operation(pair.base["w.F32"], [term], block_rows=32)
    found = compute(op, cuts=(32, 64)).view(np.float32).reshape(ROWS, COLS)
    assert calls == [[slice(0, 22), slice(22, 54), slice(54, 86), slice(86, 140)]]
    w = source(pair, "w.F32")
    np.testing.assert_array_equal(found[:10], w[:10])
    np.testing.assert_allclose(found[10:], np.tile(w[10:].sum(axis=0), (ROWS - 10, 1)), rtol=1e-4, atol=1e-4)


def test_what_is_not_finite_stays_so_without_a_warning(tmp_path, compute, pair):
    w = source(pair, "w.BF16")
    w[0, 0], w[1, 1], w[2, 2] = np.nan, np.inf, 3e38
    pair.add_shard("n.safetensors", {"w": ("BF16", w)})
    op = operation(pair.base["w"], [pair.lora("w", ROWS, scale=3e38)])
    found = torch.from_numpy(compute(op).copy()).view(torch.bfloat16).reshape(ROWS, COLS)
    assert found[0, 0].isnan()
    assert not found[1, 1].isfinite()


def test_a_formula_that_gives_another_shape_is_named(pair, compute, monkeypatch):
    monkeypatch.setattr(module, "METHODS", {"bad": Method({}, rows=lambda w, f, s, i: w[:1])})
    op = operation(pair.base["w.F32"], [Term("bad", "w", {}, 1.0, 0, ROWS)])
    with pytest.raises(SutureError, match=r"m\.safetensors: w\.F32: bad gives \(1, 40\)"):
        compute(op)


@pytest.mark.parametrize("name", ["ids", "f8"])
def test_dtypes_that_cannot_be_computed_with_are_refused(pair, name):
    op = operation(pair.base[name], [pair.lora("w", 8)], cols=1)
    with pytest.raises(InputError, match=f"{name}: {pair.base[name].dtype} values") as error:
        check_computable(place([op]), pair.inputs)
    assert "BF16" in error.value.expected


def test_copies_may_be_of_any_dtype(pair):
    check_computable(place([operation(pair.base[n], cols=1, why="copy") for n in ("ids", "f8")]), pair.inputs)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "unheard_of"},
        {"method": "embedding_lora"},
        {"stop": ROWS + 1},
        {"start": -1},
        {"factors": {"A": View("absent", (1,), ((0, 1),))}},
        {"factors": {"A": View("w.A", (RANK, COLS + 1), ((0, RANK), (0, COLS)))}},
        {"factors": {"A": View("ids", (ROWS,), ((0, ROWS),))}},
    ],
    ids=["no method", "no formula", "too many rows", "negative rows", "no tensor", "other shape", "other dtype"],
)
def test_terms_that_cannot_be_applied_are_refused(pair, changes):
    term = dataclasses.replace(pair.lora("w", ROWS), **changes)
    with pytest.raises((FormatError, InputError)):
        check_computable(place([operation(pair.base["w.BF16"], [term])]), pair.inputs)
