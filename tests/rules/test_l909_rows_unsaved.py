"""L909: rows of new tokens that no file would hold."""

from __future__ import annotations

import pytest
from live_cases import found
from tiny import VOCAB, make_base, wrapped
from transformers import AutoModelForCausalLM
from zoo import FAMILIES, build
from zoo import VOCAB as VOCAB_OF_ZOO


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


def test_a_model_of_text_and_images(tmp_path):
    """PEFT looks for the vocabulary's size at the top of the config, where such a model has none."""
    family = FAMILIES["qwen3-vl"]
    model = family.model_class.from_pretrained(build(family, tmp_path))
    model.resize_token_embeddings(VOCAB_OF_ZOO + 8, mean_resizing=False)
    (finding,) = found(wrapped(model), "L909")
    assert f"the model has {VOCAB_OF_ZOO + 8} rows, its base on the disk {VOCAB_OF_ZOO}" in finding.found


def test_rows_that_are_saved_and_rows_that_are_not_new(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    assert not found(wrapped(model), "L909")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(VOCAB + 6, mean_resizing=False)
    model.loss_function = lambda logits, labels, **_: logits.float().mean()  # of a class that keeps the old size
    assert not found(wrapped(model, modules_to_save=["embed_tokens", "lm_head"]), "L909")
