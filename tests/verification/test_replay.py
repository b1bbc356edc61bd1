"""A right merge passes, and everything that is broken on purpose is found and named."""

from __future__ import annotations

import numpy as np
import pytest
from verification.made import (
    DOWN,
    EMBED,
    HEAD,
    NORM,
    QKV,
    TABLE,
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
)

from suture.errors import InputError
from suture.formats.dtypes import to_float
from suture.values import Source, Term, Verdict, View
from suture.verification import replay


def verdict_of(made: Made, *, full: bool = True) -> Verdict:
    return replay(*made.given, full=full)


def only_wrong(made: Made, *, full: bool = True):
    verdict = verdict_of(made, full=full)
    assert not verdict.ok
    (wrong,) = verdict.wrong
    return wrong


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("untied", [True, False])
def test_a_right_merge_passes(tmp_path, dtype, full, untied):
    made = make(tmp_path, dtype, head_of_its_own=untied)
    verdict = verdict_of(made, full=full)
    assert verdict.ok, [c for c in verdict.checks if not c.ok] + list(verdict.wrong)
    assert sum(c.n_checked for c in verdict.checks if c.name.startswith("tensors that")) == len(made.plan.operations)


@pytest.mark.parametrize("method", ["dora", "dora_columns"])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_dora_passes_and_a_norm_of_another_base_does_not(tmp_path, method, dtype):
    made = make(tmp_path, dtype)
    down = made.checkpoint.tensors[DOWN]
    dora = term(made.adapter, DOWN, method=method)
    operations = [operation(t, [dora] if t == down else ()) for t in made.checkpoint.tensors.values()]
    made = write(Made(made.checkpoint, made.adapter, planned(made.checkpoint, made.adapter, operations), made.folder))
    assert verdict_of(made).ok
    write(made, computed(made, {DOWN: lambda w, d: 1.01 * (w + d)}))
    assert only_wrong(made).tensor == DOWN


def test_trained_tokens_replace_rows_and_only_those(tmp_path):
    made = make(tmp_path)
    rows = (3, 40)
    data = View.whole(made.adapter.tensors["q.A"]).cut(0, 0, 2)
    tokens = Term("trainable_tokens", "embed", {"D": data}, 1.0, 0, 48, rows_changed=rows)
    embed = made.checkpoint.tensors[EMBED]
    operations = [operation(t, [tokens] if t == embed else ()) for t in made.checkpoint.tensors.values()]
    made = write(Made(made.checkpoint, made.adapter, planned(made.checkpoint, made.adapter, operations), made.folder))
    assert verdict_of(made, full=False).ok
    write(made, computed(made, {EMBED: lambda w, d: w}))
    wrong = only_wrong(made, full=False)
    assert (wrong.tensor, wrong.status, wrong.applied) == (EMBED, "unchanged", 0.0)


def test_a_replaced_tensor_comes_from_the_adapter(tmp_path):
    made = make(tmp_path)
    norm, new = made.checkpoint.tensors[NORM], made.adapter.tensors["q.m"]
    replaced = operation(norm, source=Source("adapter", new), why="replace")
    operations = [replaced if t == norm else operation(t) for t in made.checkpoint.tensors.values()]
    made = write(Made(made.checkpoint, made.adapter, planned(made.checkpoint, made.adapter, operations), made.folder))
    assert verdict_of(made).ok
    write(made, computed(made, {NORM: lambda w, d: w + 1}))
    assert only_wrong(made).tensor == NORM


def test_a_source_may_begin_at_a_later_row(tmp_path):
    made = make(tmp_path)
    qkv, norm = made.checkpoint.tensors[QKV], made.checkpoint.tensors[NORM]
    terms = [term(made.adapter, "q")]
    operations = [
        operation(norm),
        operation(qkv, tensor="copied", source=Source("base", qkv, 32), shape=(64, 32)),
        operation(qkv, terms, tensor="merged", source=Source("base", qkv, 64), shape=(32, 32)),
    ]
    made = write(Made(made.checkpoint, made.adapter, planned(made.checkpoint, made.adapter, operations), made.folder))
    for full in (True, False):
        verdict = verdict_of(made, full=full)
        assert not verdict.wrong
        assert all(c.ok for c in verdict.checks if c.name.startswith("tensors that"))


@pytest.mark.parametrize("size", [0.003, 0.01, 0.03])
@pytest.mark.parametrize(("times", "words"), [(0, "missing"), (2, "twice"), (3, "3 times too large")])
def test_the_best_explanation_is_given_where_several_fit(tmp_path, size, times, words):
    made = make(tmp_path, size=size)  # updates from a hundredth of an ulp to an ulp
    write(made, computed(made, {DOWN: lambda w, d: w + times * d}))
    assert words in only_wrong(made).detail


@pytest.mark.parametrize("tensor", [EMBED, NORM, TABLE])
@pytest.mark.parametrize("at", [0, -1])
def test_one_bit_of_a_copied_tensor(tmp_path, tensor, at):
    made = make(tmp_path)
    flip_bit(made, tensor, at)
    wrong = only_wrong(made)
    assert (wrong.tensor, wrong.status, wrong.n_wrong) == (tensor, "changed", 1)
    assert "1 of" in wrong.detail
    assert "bytes differ" in wrong.detail


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("tensor", [QKV, DOWN])
def test_one_bit_of_a_merged_tensor(tmp_path, tensor, dtype):
    made = make(tmp_path, dtype)
    flip_bit(made, tensor, at=1 if dtype != "F32" else 2, bit=0)
    wrong = only_wrong(made)
    assert (wrong.tensor, wrong.status, wrong.n_wrong) == (tensor, "wrong", 1)
    assert "1 of" in wrong.detail


@pytest.mark.parametrize(
    ("formula", "status", "applied", "words"),
    [
        (lambda w, d: w, "unchanged", 0, "the update is missing"),
        (lambda w, d: w + 2 * d, "wrong", 2, "in here twice"),
        (lambda w, d: w - d, "wrong", -1, "subtracted"),
        (lambda w, d: w + 3 * d, "wrong", 3, "3 times too large: alpha/sqrt(r) against alpha/r?"),
        (lambda w, d: w + d / 3, "wrong", 1 / 3, "3 times too small"),
        (lambda w, d: w + d / 1.5, "wrong", 1 / 1.5, "the scale 1.5 is missing"),
        (lambda w, d: w + 5 * d, "wrong", 5, "5 times what it should be"),
        (lambda w, d: w + d[::-1], "wrong", None, "another update"),
    ],
    ids=["dropped", "doubled", "subtracted", "rslora", "not rslora", "no scale", "other scale", "other adapter"],
)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_wrong_update_is_found_and_named(tmp_path, formula, status, applied, words, dtype):
    made = make(tmp_path, dtype)
    write(made, computed(made, {DOWN: formula}))
    wrong = only_wrong(made)
    assert (wrong.tensor, wrong.status) == (DOWN, status)
    assert words in wrong.detail
    assert applied is None or wrong.applied == pytest.approx(applied, abs=0.02)
    assert wrong.max_error > 0
    assert only_wrong(made, full=False).detail == wrong.detail


def test_one_of_two_updates_of_a_fused_tensor_is_missing(tmp_path):
    made = make(tmp_path)
    only_q = np.arange(96)[:, None] < 32
    write(made, computed(made, {QKV: lambda w, d: np.where(only_q, w + d, w)}))
    wrong = only_wrong(made)
    assert "rows 64:96 (v): the update is missing" in wrong.detail


def test_a_value_outside_every_term_is_changed(tmp_path):
    made = make(tmp_path)
    flip_bit(made, QKV, at=2 * 32 * 40 + 1)
    wrong = only_wrong(made)
    assert (wrong.tensor, wrong.n_wrong) == (QKV, 1)


def test_an_update_below_the_rounding_is_lost_but_right(tmp_path):
    made = make(tmp_path, size=1e-5)
    verdict = verdict_of(made)
    assert verdict.ok
    (check,) = (c for c in verdict.checks if c.name == "tensors that change")
    assert "smaller than the dtype's rounding in" in check.detail


def test_an_update_of_zeros_is_not_called_lost(tmp_path):
    made = make(tmp_path, size=0.0)
    verdict = verdict_of(made)
    assert verdict.ok
    assert not any("rounding" in c.detail for c in verdict.checks)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_base_and_adapter_do_not_give(tmp_path, value):
    made = make(tmp_path)

    def spoil(w, d):
        new = w + d
        new[0, 5] = value
        return new

    write(made, computed(made, {DOWN: spoil}))
    wrong = only_wrong(made)
    assert (wrong.tensor, wrong.n_wrong) == (DOWN, 1)
    assert np.isfinite(wrong.max_error)


def test_special_values_of_the_base_must_stay_where_they_are(tmp_path):
    made = make(tmp_path)
    op = next(o for o in made.plan.operations if o.tensor == DOWN)
    path = made.checkpoint.folder / op.source.tensor.file
    data = bytearray(path.read_bytes())
    begin = op.source.tensor.begin
    data[begin : begin + 6] = bytes.fromhex("c07f807f80ff")  # NaN, inf, -inf in bfloat16
    path.write_bytes(data)
    write(made)
    assert verdict_of(made).ok
    write(made, computed(made, {DOWN: lambda w, d: np.nan_to_num(w + d, nan=0.0)}))
    wrong = only_wrong(made)
    assert wrong.tensor == DOWN


def test_overflow_counts_as_right_only_where_the_exact_value_overflows(tmp_path):
    made = make(tmp_path, "F16", size=200.0)  # updates of about 5e5: most overflow float16
    assert np.isinf(computed(made)[DOWN][1]).any()
    assert verdict_of(made).ok
    write(made, computed(made, {DOWN: lambda w, d: np.clip(w + d, -65504, 65504)}))
    assert only_wrong(made).tensor == DOWN


def test_a_second_rounding_is_wrong_in_our_own_merge(tmp_path):
    made = make(tmp_path)
    write(made, computed(made, twice=True))
    assert {w.tensor: w.detail for w in verdict_of(made).wrong} == dict.fromkeys(
        [QKV, DOWN], "values were rounded more than once"
    )


class TestTiedPairs:
    def test_swapped_ends(self, tmp_path):
        made = make(tmp_path, head_of_its_own=True)
        right = computed(made)
        write(made, {**right, EMBED: right[HEAD], HEAD: right[EMBED]})
        verdict = verdict_of(made)
        assert {w.tensor: w.detail for w in verdict.wrong} == {
            EMBED: f"it holds what {HEAD} should hold",
            HEAD: f"it holds what {EMBED} should hold",
        }

    def test_one_end_in_both(self, tmp_path):
        made = make(tmp_path, head_of_its_own=True)
        right = computed(made)
        write(made, {**right, HEAD: right[EMBED]})
        wrong = only_wrong(made)
        assert (wrong.tensor, wrong.detail) == (HEAD, f"it holds what {EMBED} should hold")

    @pytest.mark.parametrize("full", [True, False])
    def test_both_updates_in_one_tensor(self, tmp_path, full):
        made = make(tmp_path, head_of_its_own=True)
        right = computed(made)
        ops = {op.tensor: op for op in made.plan.operations}
        w = to_float(source(made, ops[EMBED]).copy(), "BF16")
        delta = apply(made, ops[HEAD], w) - w
        write(made, {**right, EMBED: computed(made, {EMBED: lambda w, d: w + d + delta})[EMBED]})
        wrong = only_wrong(made, full=full)
        assert f"the update of {HEAD} is in here as well" in wrong.detail


def test_progress_adds_up_to_the_tensors(tmp_path):
    made = make(tmp_path)
    seen: list[int] = []
    replay(*made.given, full=False, progress=seen.append)
    assert sum(seen) == sum(op.end - op.begin for op in made.plan.operations)


def test_an_input_that_is_cut_short_is_an_error_and_no_verdict(tmp_path):
    made = make(tmp_path)
    path = made.adapter.folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(InputError, match="cut short"):
        verdict_of(made)


def test_a_folder_that_is_not_there(tmp_path):
    made = make(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        replay(made.plan, made.checkpoint, made.adapter, tmp_path / "nowhere", full=False)
