"""N505: rows of new tokens as they were when they were added."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from rule_cases import BOTH, EMBED, HEAD, HIDDEN, VOCAB, adapter, findings, only, random, tokenizer
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

NEW = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quiet_torch):
    """A base of a small vocabulary."""
    return tiny.make_base(tmp_path_factory.mktemp("rows") / "base", tie=False)


def resized(folder, out, *, train):
    """What PEFT saves of a model whose vocabulary was resized as Transformers does it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(tiny.VOCAB + NEW)
    live = tiny.wrapped(model, modules_to_save=["embed_tokens", "lm_head"])
    if train:
        tiny.trained(live)
    live.save_pretrained(out)
    return folder, out


def test_rows_at_the_mean(folder, tmp_path):
    found = findings(*resized(folder, tmp_path, train=False), "N505")
    assert len(found) == 2
    assert all(f"{NEW} the mean of the old rows" in f.found for f in found)


def test_rows_that_moved(folder, tmp_path):
    assert not findings(*resized(folder, tmp_path, train=True), "N505")


def extended(base, rows):
    """Both ends of the base in full, with these rows more."""
    stored = load_file(base / "model.safetensors")
    return {**BOTH, **{f"{m}.weight": np.concatenate([stored[f"{m}.weight"] + 1, rows]) for m in (EMBED, HEAD)}}


def saved(folder, tensors):
    return adapter(folder, tensors, modules_to_save=["embed_tokens", "lm_head"])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((2, HIDDEN), np.float32), "2 all zero"),
        (np.tile(random(1, HIDDEN), (3, 1)), "3 the same as another new row"),
    ],
)
def test_rows_of_other_tools(base, tmp_path, rows, words):
    assert all(words in f.found for f in findings(base, saved(tmp_path, extended(base, rows)), "N505"))
    assert findings(base, tmp_path, "N505")


def test_padding_beyond_the_tokenizer(base, tmp_path):
    rows = np.concatenate([random(2, HIDDEN), np.zeros((6, HIDDEN), np.float32)])
    tuned = saved(tmp_path, extended(base, rows))
    assert not findings(base, tuned, "N505"), "without a tokenizer, some rows may be padding"
    tokenizer(tuned, {f"t{i}": i for i in range(VOCAB + 2)})
    assert not findings(base, tuned, "N505")
    tokenizer(tuned, {f"t{i}": i for i in range(VOCAB + 4)})
    assert "2 of 4 rows" in findings(base, tuned, "N505")[0].found


def test_trained_tokens(base, tmp_path):
    key = f"{EMBED}.token_adapter.trainable_tokens_delta"
    same = adapter(tmp_path / "same", {**BOTH, key: np.ones((2, HIDDEN), np.float32)}, trainable_token_indices=[1, 2])
    assert only(base, same, "N505").where.endswith(key)
    other = adapter(tmp_path / "other", {**BOTH, key: random(2, HIDDEN)}, trainable_token_indices=[1, 2])
    assert not findings(base, other, "N505")


def test_an_embedding_of_the_bases_size(base, tmp_path):
    assert not findings(base, saved(tmp_path, extended(base, np.zeros((0, HIDDEN), np.float32))), "N505")


def test_a_lora_on_the_new_rows(folder, tmp_path):
    """The matrix below a LoRA holds rows as they were drawn, and that is right."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(tiny.VOCAB + NEW)
    live = tiny.wrapped(model, target_modules=["q_proj", "embed_tokens", "lm_head"])
    tiny.trained(live).save_pretrained(tmp_path)
    assert not findings(folder, tmp_path, "N505")


def with_lora(folder, out, fill, *, train=True):
    """A LoRA on both ends of a resized vocabulary, whose new rows a tool filled before training."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(tiny.VOCAB + NEW, mean_resizing=False)
    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            fill(end.weight[tiny.VOCAB :])
    live = tiny.wrapped(model, target_modules=["q_proj", "embed_tokens", "lm_head"])
    (tiny.trained(live) if train else live).save_pretrained(out)
    return folder, out


def test_zeros_below_a_lora(folder, tmp_path):
    found = findings(*with_lora(folder, tmp_path, lambda rows: rows.zero_()), "N505")
    assert len(found) == 2
    assert all("base_layer.weight" in f.where and f"{NEW} of {NEW}" in f.found for f in found)
    assert all(f"{NEW} all zero" in f.found for f in found)


def test_equal_rows_below_a_lora(folder, tmp_path):
    """Transformers gives all new tokens the mean where it cannot draw around it; the LoRA tells them apart, or not."""
    assert not findings(*with_lora(folder, tmp_path / "trained", lambda rows: rows.fill_(0.01)), "N505")
    found = findings(*with_lora(folder, tmp_path / "idle", lambda rows: rows.fill_(0.01), train=False), "N505")
    assert all(f"{NEW} the same as another new row" in f.found for f in found)
    assert len(found) == 2


def test_other_rows_below_a_lora(folder, tmp_path):
    assert not findings(*with_lora(folder, tmp_path, lambda rows: rows, train=False), "N505")


@pytest.mark.parametrize(("change", "fires"), [(np.zeros_like, True), (lambda x: x, False)])
def test_new_tokens_of_a_resized_vocabulary(folder, tmp_path, change, fires):
    """The rows below them are in the file too, and stay as they were drawn."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(tiny.VOCAB + NEW, mean_resizing=False)
    live = tiny.wrapped(model, trainable_token_indices=[*range(tiny.VOCAB, tiny.VOCAB + NEW)])
    tiny.trained(live).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (key,) = (name for name in tensors if "trainable_tokens_delta" in name)
    save_file(tensors | {key: change(tensors[key])}, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    found = findings(folder, tmp_path, "N505")
    assert [f.where.endswith(key) for f in found] == [True] * fires
    assert all(f"{NEW} all zero" in f.found for f in found)
