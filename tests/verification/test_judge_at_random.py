"""What was rounded at random is right if the planned bits give it, and other bits, or none, are found and named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from verification.made import (
    DOWN,
    EMBED,
    HEAD,
    NORM,
    QKV,
    Made,
    apply,
    computed,
    flip_bit,
    make,
    operation,
    planned,
    source,
    term,
    write,
    write_as_another_tool,
)

from suture import codec, noise
from suture.formats.dtypes import from_float, from_float_at_random, to_float
from suture.planning.codec import plan_id
from suture.values import Options, Receipt, Source, Term, View
from suture.verification import exact, replay, verify_folder
from suture.verification.hashes import RECEIPT

SIXTEEN, SEED = ("BF16", "F16"), 5


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def judged_by(request, monkeypatch):
    """Every test must hold for both judges."""
    if request.param == "numpy":
        monkeypatch.setattr(exact, "_random_functions", dict)
        monkeypatch.setattr(exact, "_functions", dict)


def seeded(made: Made, seed: int = SEED) -> Made:
    """The same with a plan in which the adapter's values are rounded at random."""
    operations = [
        replace(op, seed=seed) if op.terms or op.source.origin == "adapter" else op for op in made.plan.operations
    ]
    options = Options(rounding="stochastic", seed=seed)
    return replace(made, plan=replace(made.plan, operations=tuple(operations), options=options))


def drawn(made: Made, seed: int = SEED, wrong=None) -> dict:
    """What a merge gives that rounds the rows of terms at random; `wrong` replaces a tensor's formula of (w, delta)."""
    found = {}
    for op in made.plan.operations:
        w = source(made, op)
        if op.is_copy:
            found[op.tensor] = (op.dtype, w.reshape(op.shape))
            continue
        w = to_float(np.ascontiguousarray(w), op.source.tensor.dtype)
        new = apply(made, op, w)
        if op.tensor in (wrong or {}):
            new = wrong[op.tensor](w, new - w).astype(w.dtype)
        bits = noise.by_numpy(noise.key(seed, op.tensor), 0, new.size).reshape(new.shape)
        out = from_float(new, op.dtype)
        rows = np.full(len(new), op.source.origin == "adapter")
        for t in op.terms:
            rows[t.start : t.stop] = True
        out[rows] = from_float_at_random(new[rows], op.dtype, bits[rows])
        found[op.tensor] = (op.dtype, out.reshape(op.shape))
    return found


def verdict_of(made, *, full=True):
    return replay(*made.given, full=full)


def wrong_of(made, *, full=True):
    verdict = verdict_of(made, full=full)
    assert not verdict.ok
    return {w.tensor: w for w in verdict.wrong}


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("size", [0.1, 1e-3])
@pytest.mark.parametrize("untied", [True, False])
def test_the_planned_bits_pass(tmp_path, dtype, full, size, untied):
    made = seeded(make(tmp_path, dtype, size=size, head_of_its_own=untied))
    write(made, drawn(made))
    verdict = verdict_of(made, full=full)
    assert verdict.ok, [c for c in verdict.checks if not c.ok] + list(verdict.wrong)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("size", [0.1, 0.03])
def test_other_bits_are_found_and_named(tmp_path, dtype, full, size):
    made = seeded(make(tmp_path, dtype, size=size))
    write(made, drawn(made, SEED + 1))
    wrong = wrong_of(made, full=full)
    assert wrong.keys() == {QKV, DOWN}
    assert all("other bits: another seed?" in w.detail for w in wrong.values())


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_a_twin_has_bits_of_its_own(tmp_path, dtype):
    """The two ends of a tied pair, each with the other's update and bits, are two tensors."""
    made = seeded(make(tmp_path, dtype, head_of_its_own=True))
    tensors = drawn(made)
    keys = {op.tensor: noise.key(SEED, op.tensor).tobytes() for op in made.plan.operations}
    assert keys[EMBED] != keys[HEAD]
    write(made, {**tensors, EMBED: tensors[HEAD]})
    assert wrong_of(made).keys() == {EMBED}


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_rounding_to_nearest_is_not_what_was_planned(tmp_path, dtype):
    made = make(tmp_path, dtype)
    assert verdict_of(made).ok
    wrong = wrong_of(seeded(made))
    assert wrong.keys() == {QKV, DOWN}
    assert {w.detail.rpartition(": ")[2] for w in wrong.values()} == {
        "the values were rounded to nearest, not at random"
    }


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_rounding_at_random_is_not_to_nearest(tmp_path, dtype):
    made = make(tmp_path, dtype)
    write(made, drawn(made))
    wrong = wrong_of(made)
    assert wrong.keys() == {QKV, DOWN}
    assert all("rounded up and down at random" in w.detail for w in wrong.values())


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("at", [0, 2 * 333, -2])
def test_the_last_bit_of_one_value(tmp_path, dtype, at):
    made = seeded(make(tmp_path, dtype))
    write(made, drawn(made))
    flip_bit(made, DOWN, at)
    wrong = wrong_of(made)
    assert {name: w.n_wrong for name, w in wrong.items()} == {DOWN: 1}
    assert "1 of" in wrong[DOWN].detail


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        (lambda w, d: w, "the update is missing"),
        (lambda w, d: w + 2 * d, "in here twice"),
        (lambda w, d: w - d, "subtracted"),
        (lambda w, d: w + 3 * d, "3 times too large"),
        (lambda w, d: w + d[::-1], "another update"),
    ],
    ids=["dropped", "doubled", "subtracted", "rslora", "other adapter"],
)
def test_a_wrong_update_is_still_named(tmp_path, formula, words):
    made = seeded(make(tmp_path))
    write(made, drawn(made, wrong={DOWN: formula}))
    wrong = wrong_of(made)
    assert wrong.keys() == {DOWN}
    assert words in wrong[DOWN].detail


@pytest.mark.parametrize("method", ["dora", "dora_columns", "trainable_tokens"])
@pytest.mark.parametrize("given", ["BF16", "F32", "F64"])
def test_other_methods_and_wider_sources(tmp_path, method, given):
    """Also a cast of the base, which stays to nearest, and a full tensor of the adapter, which does not."""
    made = make(tmp_path, given)
    tensors = made.checkpoint.tensors
    if method == "trainable_tokens":
        data = View.whole(made.adapter.tensors["q.A"]).cut(0, 0, 2)
        changed = EMBED, Term(method, "embed", {"D": data}, 1.0, 0, 48, rows_changed=(3, 40))
    else:
        changed = DOWN, term(made.adapter, DOWN, method=method)
    operations = [
        operation(t, [changed[1]] if name == changed[0] else (), dtype=t.dtype if t.dtype == "I64" else "BF16")
        for name, t in tensors.items()
        if name != NORM
    ]
    operations.append(
        operation(tensors[NORM], dtype="BF16", source=Source("adapter", made.adapter.tensors["q.m"]), why="replace")
    )
    plan = planned(made.checkpoint, made.adapter, operations)
    made = seeded(Made(made.checkpoint, made.adapter, plan, made.folder))
    write(made, drawn(made))
    for full in (True, False):
        verdict = verdict_of(made, full=full)
        assert not verdict.wrong
    write(made, drawn(made, SEED + 1))
    assert wrong_of(made).keys() >= {NORM} | (
        {changed[0]} if (method, given) != ("trainable_tokens", "BF16") else set()
    )


def test_a_receipt_of_other_rounding_is_told(tmp_path):
    """The folder is right for its own plan; verified by another one it is wrong, and the receipt says why."""
    made = make(tmp_path)
    write(made, drawn(made))
    own = seeded(made).plan
    receipt = Receipt(1, plan_id(own), "b", "base", "a", "adapter", own.options, "k", {}, {}, (), ())
    (made.folder / RECEIPT).write_bytes(codec.canonical(receipt))
    verdict = verify_folder(*made.given)
    assert not verdict.ok
    (check,) = (c for c in verdict.checks if c.name == "receipt")
    assert check.ok
    assert check.detail == "it was made with --rounding stochastic --seed 5"
    assert verify_folder(*seeded(made).given).ok


def test_several_roundings_are_not_let_pass(tmp_path):
    """A folder of another tool, rounded to nearest, held against a plan that rounds at random."""
    made = make(tmp_path, factors="BF16")
    write_as_another_tool(made, computed(made))
    assert verify_folder(*made.given).ok
    assert {w.tensor for w in verify_folder(*seeded(made).given).wrong} == {QKV, DOWN}
    write_as_another_tool(made, drawn(made))
    assert verify_folder(*seeded(made).given).ok


def test_a_wider_file_is_not_random(tmp_path):
    """In float32 the same merge of another tool is right whatever the plan says of 16 bits."""
    made = make(tmp_path)
    tensors = {}
    for op in made.plan.operations:
        w = source(made, op)
        if op.dtype == "I64":
            tensors[op.tensor] = (op.dtype, w.reshape(op.shape))
        else:
            new = apply(made, op, to_float(np.ascontiguousarray(w), op.source.tensor.dtype))
            tensors[op.tensor] = ("F32", new.astype(np.float32).reshape(op.shape))
    write_as_another_tool(made, tensors)
    assert verify_folder(*seeded(made).given).ok
