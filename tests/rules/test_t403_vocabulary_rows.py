"""T403: rows of the vocabulary."""

from __future__ import annotations

import pytest
import tiny
from rule_cases import BOTH, EMBED, HEAD, HIDDEN, VOCAB, adapter, embedding_pair, findings, only, pair, random
from transformers import AutoModelForCausalLM

DELTA = f"{EMBED}.token_adapter.trainable_tokens_delta"


def test_a_token_beyond_the_vocabulary(base, tmp_path):
    tensors = {**BOTH, DELTA: random(2, HIDDEN)}
    finding = only(base, adapter(tmp_path, tensors, trainable_token_indices=[3, VOCAB]), "T403")
    assert f"token {VOCAB}" in finding.found


def test_the_last_token(base, tmp_path):
    tensors = {**BOTH, DELTA: random(2, HIDDEN)}
    assert not findings(base, adapter(tmp_path, tensors, trainable_token_indices=[3, VOCAB - 1]), "T403")


@pytest.mark.parametrize("end", [EMBED, HEAD])
def test_an_end_with_fewer_rows(base, tmp_path, end):
    tensors = {**BOTH, f"{end}.weight": random(VOCAB - 1, HIDDEN)}
    tuned = adapter(tmp_path, tensors, modules_to_save=[end.rpartition(".")[2]])
    assert f"[{VOCAB - 1}, {HIDDEN}]" in findings(base, tuned, "T403")[0].found


def test_one_end_grows(base, tmp_path):
    tensors = {**BOTH, f"{EMBED}.weight": random(VOCAB + 4, HIDDEN)}
    found = findings(base, adapter(tmp_path, tensors, modules_to_save=["embed_tokens"]), "T403")
    assert "different numbers of rows" in found[0].found


def test_both_ends_grow(base, tmp_path):
    tensors = {**BOTH, f"{EMBED}.weight": random(VOCAB + 4, HIDDEN), f"{HEAD}.weight": random(VOCAB + 4, HIDDEN)}
    tuned = adapter(tmp_path, tensors, modules_to_save=["embed_tokens", "lm_head"])
    assert not findings(base, tuned, "T403")


NEW = VOCAB + 4
LORAS = {"embed_tokens": embedding_pair(EMBED, NEW), "lm_head": pair(HEAD, HIDDEN, NEW)}


@pytest.mark.parametrize("end", sorted(LORAS))
def test_a_lora_for_more_tokens_than_there_are(base, tmp_path, end):
    finding = only(base, adapter(tmp_path, LORAS[end], target_modules=[end]), "T403")
    assert f"trained for {NEW} tokens" in finding.found
    assert "save_embedding_layers" in finding.do
    assert not findings(base, tmp_path, "M303")


def test_a_lora_with_the_resized_matrix(base, tmp_path):
    copies = {f"{m}.base_layer.weight": random(NEW, HIDDEN) for m in (EMBED, HEAD)}
    tensors = {**LORAS["embed_tokens"], **LORAS["lm_head"], **copies}
    assert not findings(base, adapter(tmp_path, tensors, target_modules=["embed_tokens", "lm_head"]), "T403")


@pytest.mark.parametrize(
    ("end", "tensors"), [("embed_tokens", embedding_pair(rows=NEW)), ("lm_head", pair(HEAD, 8, NEW))]
)
def test_a_lora_of_another_model(tmp_path, base, end, tensors):
    wider = {k: (random(HIDDEN + 1, 2) if k.endswith("embedding_B") else v) for k, v in tensors.items()}
    tuned = adapter(tmp_path, wider, target_modules=[end])
    assert findings(base, tuned, "M303")
    assert not findings(base, tuned, "T403")


def test_what_peft_saves_of_a_resized_model_whose_base_it_does_not_find(tmp_path, quiet_torch):
    base = tiny.make_base(tmp_path / "base", tie=False)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(tiny.VOCAB + 3)
    live = tiny.wrapped(model, target_modules=r"(.*\.)?(embed_tokens|lm_head)")
    tiny.trained(live).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert len(findings(base, tmp_path / "adapter", "T403")) == 2
