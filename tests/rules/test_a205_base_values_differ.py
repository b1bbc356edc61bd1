"""A205: copies of the base in the adapter that are of another base."""

from __future__ import annotations

from rule_cases import EMBED, HIDDEN, VOCAB, adapter, embedding_pair, findings, only, random
from safetensors.numpy import load_file

COPY = f"{EMBED}.base_layer.weight"


def embedding_of(base):
    return load_file(base / "model.safetensors")[f"{EMBED}.weight"]


def test_a_copy_of_another_base(base, tmp_path):
    tensors = {**embedding_pair(), COPY: random(VOCAB, HIDDEN, seed=99)}
    tuned = adapter(tmp_path, tensors, target_modules=["embed_tokens"], base_model_name_or_path="org/right-one")
    finding = only(base, tuned, "A205")
    assert "only 0.0% of its rows" in finding.found
    assert COPY in finding.where
    assert "org/right-one" in finding.do


def test_a_copy_of_this_base(base, tmp_path):
    tensors = {**embedding_pair(), COPY: embedding_of(base)}
    assert not findings(base, adapter(tmp_path, tensors, target_modules=["embed_tokens"]), "A205")


def test_one_row_of_a_small_copy(base, tmp_path):
    copy = embedding_of(base).copy()
    copy[3] += 1
    tuned = adapter(tmp_path, {**embedding_pair(), COPY: copy}, target_modules=["embed_tokens"])
    assert "96.9%" in only(base, tuned, "A205").found
