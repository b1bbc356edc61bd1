"""T407: old adapters on scaled embeddings."""

from __future__ import annotations

import json

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from rule_cases import BOTH, EMBED, adapter, embedding_pair, findings
from zoo import FAMILIES, load

LORA = {"target_modules": ["q_proj", "embed_tokens"]}
TOKENS = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}


def saved(base_of, family, folder, config, version):
    """An adapter of today's PEFT, which says that it is of another version."""
    live = get_peft_model(load(FAMILIES[family], base_of(family)), LoraConfig(r=2, **config))
    tiny.trained(live).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_version": version}))
    return base_of(family), folder


@pytest.mark.parametrize("config", [LORA, TOKENS], ids=["lora", "tokens"])
@pytest.mark.parametrize("version", ["0.17.1", None, "0.9.0", "0.17.2.dev0@abc"])
def test_an_old_adapter(base_of, tmp_path, config, version):
    (finding,) = findings(*saved(base_of, "gemma3", tmp_path, config, version), "T407")
    assert finding.severity == "warning"
    assert "embed_tokens" in finding.where


@pytest.mark.parametrize("version", ["0.18.0", "0.21.2", "1.0.0"])
def test_a_current_adapter(base_of, tmp_path, version):
    assert not findings(*saved(base_of, "gemma3", tmp_path, LORA, version), "T407")


def test_an_old_adapter_on_linear_layers(base_of, tmp_path):
    config = {"target_modules": ["q_proj"]}
    assert not findings(*saved(base_of, "gemma3", tmp_path, config, "0.17.1"), "T407")


def test_an_embedding_without_scale(base, tmp_path):
    tensors = {**BOTH, **embedding_pair(EMBED)}
    tuned = adapter(tmp_path, tensors, target_modules=["q_proj", "embed_tokens"], peft_version="0.17.1")
    assert not findings(base, tuned, "T407")


@pytest.mark.parametrize("family", ["gemma3", "gemma3-image"])
def test_peft_scales_what_it_adds_to_such_an_embedding(base_of, family):
    """Transformers itself: the embedding's module multiplies, and is no plain table."""
    embedding = load(FAMILIES[family], base_of(family)).get_input_embeddings()
    assert float(embedding.embed_scale) > 1
