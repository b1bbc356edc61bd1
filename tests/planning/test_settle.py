"""Tied parameters: who shares a tensor after the merge, and who needs one of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from methods.made import tensor

from suture.planning.ties import settle
from suture.values import Arch, Checkpoint, Param, Part, Resolved, TensorInfo, Term, Tie, Update, View

EMBED, HEAD = "embed.weight", "head.weight"
ROWS, DIM = 6, 4


def arch(*, separable: bool = True) -> Arch:
    params = {EMBED: Param(EMBED, (ROWS, DIM), "Embedding"), HEAD: Param(HEAD, (ROWS, DIM), "Linear")}
    tie = Tie((EMBED, HEAD), separable, "" if separable else "its forward pass depends on the tie")
    parts = (Part(EMBED, EMBED), Part(HEAD, HEAD))
    return Arch("Tiny", "test", params, parts, (tie,), (("tie_word_embeddings",),), "embed", "head")


def base(*names: str) -> Checkpoint:
    tensors = {n: TensorInfo(n, "BF16", (ROWS, DIM), "model.safetensors", 0, ROWS * DIM * 2) for n in names}
    return Checkpoint(Path(), {}, tensors, (), None, {}, ())


def lora(param: str) -> Update:
    view = View.whole(tensor(f"{param}.lora", ROWS, 2))
    return Update(param, (ROWS, DIM), DIM, None, (Term("lora", param, {"B": view, "A": view}, 1.0, 0, ROWS, 2),))


def tokens(param: str) -> Update:
    term = Term("trainable_tokens", param, {"D": View.whole(tensor("D", 1, DIM))}, 1.0, 0, ROWS, rows_changed=(3,))
    return Update(param, (ROWS, DIM), DIM, None, (term,))


def whole(param: str, rows: int = ROWS, key: str = "") -> Update:
    return Update(param, (rows, DIM), DIM, tensor(key or param, rows, DIM), ())


def settled(*updates: Update, stored=(EMBED,), policy="auto", same=False, equal=True, separable=True, frozen=None):
    resolved = Resolved({u.param: u for u in updates}, {}, frozen or {}, {}, (), ())
    return settle(base(*stored), arch(separable=separable), resolved, policy, lambda a, b: same, lambda a, b: equal)


@pytest.mark.parametrize("updates", [(lora(EMBED),), (lora(HEAD),), (lora(EMBED), lora(HEAD)), (whole(EMBED),)])
def test_ends_that_differ_come_apart(updates):
    (untied,) = settled(*updates).untied
    assert (untied.stored, untied.added, untied.n_bytes) == (EMBED, (HEAD,), ROWS * DIM * 2)


def test_ends_with_the_same_values_stay_one_tensor():
    result = settled(lora(EMBED), lora(HEAD), same=True)
    assert (result.untied, result.problems) == ((), ())


def test_an_adapter_that_touches_neither_leaves_the_tie():
    assert settled().untied == ()


def test_a_file_that_keeps_them_apart_is_not_tied():
    result = settled(lora(HEAD), stored=(EMBED, HEAD), equal=False)
    assert (result.untied, set(result.updates)) == ((), {HEAD})


def test_a_file_that_holds_both_in_one_value_comes_apart_without_growing():
    (untied,) = settled(lora(HEAD), stored=(EMBED, HEAD)).untied
    assert (untied.added, untied.n_bytes) == ((), 0)


def test_a_file_that_holds_only_the_head_is_the_same_tie():
    (untied,) = settled(lora(EMBED), stored=(HEAD,)).untied
    assert (untied.stored, untied.added) == (HEAD, (EMBED,))


def test_trained_tokens_of_the_input_embedding_reach_the_head():
    result = settled(tokens(EMBED), same=True)
    assert (result.untied, result.updates[HEAD].terms) == ((), tokens(EMBED).terms)


def test_trained_tokens_of_the_head_alone_do_not_reach_the_embedding():
    assert settled(tokens(HEAD)).untied[0].added == (HEAD,)


def test_trained_tokens_come_before_a_low_rank_update_of_the_head():
    result = settled(tokens(EMBED), lora(HEAD))
    assert [t.method for t in result.updates[HEAD].terms] == ["trainable_tokens", "lora"]
    assert len(result.untied) == 1


def test_rows_of_a_resized_vocabulary_reach_the_other_end():
    copy = tensor(f"{EMBED}.base_layer.weight", ROWS + 2, DIM)
    grown = Update(EMBED, (ROWS + 2, DIM), DIM, copy, lora(EMBED).terms)
    result = settled(grown, frozen={EMBED: copy})
    assert result.updates[HEAD].replacement == copy
    assert (result.updates[HEAD].terms, len(result.untied)) == ((), 1)


def test_ends_with_different_numbers_of_rows_are_a_problem():
    assert [p.code for p in settled(whole(EMBED, ROWS + 2)).problems] == ["T403"]


def test_rows_may_not_grow_at_one_end_of_an_untied_model():
    resolved = Resolved({EMBED: whole(EMBED, ROWS + 2)}, {}, {}, {}, (), ())
    result = settle(
        base(EMBED, HEAD), replace(arch(), ties=()), resolved, "auto", lambda a, b: False, lambda a, b: False
    )
    assert [p.code for p in result.problems] == ["T403"]


def test_a_bias_trained_in_place_is_every_members():
    result = settled(whole(HEAD, key="head.base_layer.bias"), same=True)
    assert (result.untied, set(result.updates)) == ((), {EMBED, HEAD})


@pytest.mark.parametrize(
    ("policy", "separable", "code"), [("keep", True, "T401"), ("refuse", True, "T401"), ("auto", False, "T402")]
)
def test_refusals(policy, separable, code):
    result = settled(lora(HEAD), policy=policy, separable=separable)
    assert ([p.code for p in result.problems], result.untied) == ([code], ())


@pytest.mark.parametrize("policy", ["keep", "refuse"])
def test_equal_ends_are_no_reason_to_refuse(policy):
    assert settled(lora(EMBED), lora(HEAD), same=True, policy=policy).problems == ()


def test_untying_can_be_asked_for():
    assert len(settled(lora(EMBED), lora(HEAD), same=True, policy="untie").untied) == 1
