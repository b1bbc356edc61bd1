"""Merges of other tools: what is the same model passes and is told, what is not is found and named."""

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
    TABLE,
    VOCAB,
    Made,
    computed,
    make,
    operation,
    planned,
    write_as_another_tool,
)

from suture.formats.dtypes import from_float, to_float
from suture.values import Verdict
from suture.verification import verify_folder

UNTIED = {"tie_word_embeddings": False, "vocab_size": VOCAB, "text_config": {"tie_word_embeddings": False}}


def check(verdict: Verdict, name: str):
    return next(c for c in verdict.checks if c.name == name)


def recast(tensors, dtype: str):
    return {
        n: (dtype, from_float(to_float(raw, d), dtype)) if d != "I64" else (d, raw) for n, (d, raw) in tensors.items()
    }


@pytest.mark.parametrize("full", [True, False])
def test_one_file_without_index_is_the_same_model(tmp_path, full):
    made = make(tmp_path)
    write_as_another_tool(made, computed(made))
    verdict = verify_folder(*made.given, full=full)
    assert verdict.ok, verdict


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_another_dtype_is_compared_after_rounding_and_told(tmp_path, dtype):
    made = make(tmp_path)
    write_as_another_tool(made, recast(computed(made), dtype))
    verdict = verify_folder(*made.given, full=True)
    assert verdict.ok, verdict
    assert f"stored as {dtype}" in check(verdict, "tensors that stay as they are").detail
    assert f"stored as {dtype}" in check(verdict, "tensors that change").detail


def test_a_copy_that_lost_bits_is_not_the_base(tmp_path):
    made = make(tmp_path, "F32")
    right = computed(made)
    through = from_float(to_float(right[NORM][1], "F32"), "BF16")
    write_as_another_tool(made, {**right, NORM: ("F32", to_float(through, "BF16"))})
    (wrong,) = verify_folder(*made.given).wrong
    assert (wrong.tensor, wrong.status) == (NORM, "changed")
    assert "went through BF16" in wrong.detail


def test_an_update_that_was_rounded_on_its_own_passes_and_is_counted(tmp_path):
    made = make(tmp_path)
    write_as_another_tool(made, computed(made, twice=True))
    verdict = verify_folder(*made.given, full=True)
    assert verdict.ok, verdict
    assert "rounded more than once: " in check(verdict, "tensors that change").detail


@pytest.mark.parametrize(("factors", "passes"), [("BF16", True), ("F32", False)])
def test_only_a_16_bit_input_explains_an_update_in_16_bits(tmp_path, factors, passes):
    made = make(tmp_path, "F32", factors=factors)
    through = {DOWN: lambda w, d: w + to_float(from_float(d, "BF16"), "BF16")}
    write_as_another_tool(made, computed(made, through))
    assert verify_folder(*made.given).ok == passes


def test_a_base_that_was_cast_before_the_merge(tmp_path):
    made = make(tmp_path, "F32")
    through = lambda x: to_float(from_float(np.ascontiguousarray(x), "BF16"), "BF16")  # noqa: E731
    tensors = recast(computed(made), "BF16")
    cast_first = computed(made, {DOWN: lambda w, d: through(w) + d, QKV: lambda w, d: through(w) + d})
    write_as_another_tool(made, tensors | recast({n: cast_first[n] for n in (DOWN, QKV)}, "BF16"))
    verdict = verify_folder(*made.given, full=True)
    assert verdict.ok, verdict
    assert "rounded more than once" in check(verdict, "tensors that change").detail


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.1, 2.0])
def test_several_roundings_do_not_excuse_another_update(tmp_path, factor):
    made = make(tmp_path)
    write_as_another_tool(made, computed(made, {DOWN: lambda w, d: w + factor * d}))
    (wrong,) = verify_folder(*made.given).wrong
    assert wrong.tensor == DOWN
    assert wrong.applied == pytest.approx(factor, abs=0.01)


@pytest.mark.parametrize(
    ("tensor", "new", "status"),
    [
        (DOWN, ("I8", np.zeros((32, 64), np.int8)), "dtype"),
        (NORM, ("I8", np.zeros(32, np.int8)), "dtype"),
        (QKV, ("BF16", np.zeros((32, 96), np.uint16)), "shape"),
    ],
)
def test_a_tensor_that_cannot_be_compared_is_wrong(tmp_path, tensor, new, status):
    made = make(tmp_path)
    write_as_another_tool(made, {**computed(made), tensor: new})
    verdict = verify_folder(*made.given)
    assert not verdict.ok
    assert [(w.tensor, w.status) for w in verdict.wrong] == [(tensor, status)]


class TestNames:
    def test_missing_and_strange_tensors(self, tmp_path):
        made = make(tmp_path)
        tensors = computed(made)
        tensors["model.qkv.lora_A.weight"] = tensors.pop(NORM)
        write_as_another_tool(made, tensors)
        verdict = verify_folder(*made.given)
        assert [(w.tensor, w.status) for w in verdict.wrong] == [(NORM, "missing")]
        detail = check(verdict, "tensor names").detail
        assert f"1 missing: {NORM}" in detail
        assert "neither base nor adapter gives: model.qkv.lora_A.weight" in detail

    @pytest.mark.parametrize(
        ("rename", "words"),
        [
            (lambda n: f"transformer.{n}", "with the leading transformer."),
            (lambda n: n.removeprefix("model."), "without the leading model."),
        ],
    )
    def test_one_leading_path_more_or_less(self, tmp_path, rename, words):
        made = make(tmp_path)
        write_as_another_tool(made, {rename(n): t for n, t in computed(made).items()})
        verdict = verify_folder(*made.given)
        assert verdict.ok, verdict
        assert words in check(verdict, "tensor names").detail

    def test_tables_that_transformers_computes_may_be_left_out(self, tmp_path):
        made = make(tmp_path)
        info = made.checkpoint.tensors[TABLE]
        others = [operation(t) for n, t in made.checkpoint.tensors.items() if n != TABLE]
        operations = [*others, operation(info, tensor="model.rotary_emb.inv_freq")]
        made = replace(made, plan=planned(made.checkpoint, made.adapter, operations))
        tensors = computed(made)
        del tensors["model.rotary_emb.inv_freq"]
        write_as_another_tool(made, tensors)
        verdict = verify_folder(*made.given)
        assert verdict.ok, verdict
        assert "inv_freq is left out: Transformers computes it" in check(verdict, "tensor names").detail

    def test_a_tied_pair_that_is_stored_twice(self, tmp_path):
        made = make(tmp_path)
        tensors = computed(made)
        write_as_another_tool(made, {**tensors, HEAD: tensors[EMBED]})
        verdict = verify_folder(*made.given)
        assert verdict.ok, verdict
        assert f"{HEAD} is a second copy of {EMBED}" in check(verdict, "tensor names").detail


class TestAPairThatMustComeApart:
    def test_both_ends_stored_and_no_flag(self, tmp_path):
        made = make(tmp_path, head_of_its_own=True)
        write_as_another_tool(made, computed(made), UNTIED)
        assert verify_folder(*made.given).ok

    def test_the_head_is_lost_and_a_loader_takes_the_embeddings(self, tmp_path):
        made = make(tmp_path, head_of_its_own=True)
        tensors = computed(made)
        del tensors[HEAD]
        write_as_another_tool(made, tensors)
        verdict = verify_folder(*made.given)
        (wrong,) = verdict.wrong
        assert (wrong.tensor, wrong.status) == (HEAD, "missing")
        assert wrong.detail == f"a loader ties it to {EMBED}, which holds something else"
        assert not check(verdict, "tie flags").ok

    def test_the_head_is_lost_and_the_flag_says_untied(self, tmp_path):
        made = make(tmp_path, head_of_its_own=True)
        tensors = computed(made)
        del tensors[HEAD]
        write_as_another_tool(made, tensors, UNTIED)
        (wrong,) = verify_folder(*made.given).wrong
        assert wrong.detail == "not in the folder"

    def test_the_update_of_the_head_is_in_the_embeddings(self, tmp_path):
        made = make(tmp_path, head_of_its_own=True)
        tensors = computed(made)
        write_as_another_tool(made, {**tensors, EMBED: tensors[HEAD]}, UNTIED)
        (wrong,) = verify_folder(*made.given).wrong
        assert (wrong.tensor, wrong.detail) == (EMBED, f"it holds what {HEAD} should hold")


def test_what_is_let_pass_elsewhere_is_wrong_where_the_receipt_names_this_plan(tmp_path, receipt_of):
    made = make(tmp_path)
    write_as_another_tool(made, computed(made))
    receipt_of(made)
    verdict = verify_folder(*made.given)
    assert not verdict.ok
    assert not check(verdict, "weight files as planned").ok


def test_made_can_be_judged_by_its_receipt(tmp_path, receipt_of):
    made: Made = make(tmp_path)
    receipt_of(made)
    verdict = verify_folder(*made.given)
    assert verdict.ok, verdict
    assert check(verdict, "receipt").n_checked == 5
