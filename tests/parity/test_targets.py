"""What an adapter config claims, by Suture's reading and by PEFT's: modules, tensor names, shapes, counts."""

from __future__ import annotations

import json

import pytest
import transformers
from peft import LoraConfig
from zoo import FAMILIES
from zoo_targets import CLAIMS, inject, inject_claim

from suture.arch import describe
from suture.targets import expected

LLAMA_31_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "tie_word_embeddings": False,
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config_json(config, model_class: str) -> dict:
    """config.json as a model folder has it."""
    return {**json.loads(config.to_json_string()), "architectures": [model_class]}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: f"{c.family}-{c.what}")
def test_expected_is_what_peft_injects(claim, quiet_torch):
    family = FAMILIES[claim.family]
    rival = inject_claim(claim)
    arch = describe(config_json(family.make_config(), family.model), {})
    ours = expected(rival.config, arch)
    assert dict(sorted(ours.tensors.items())) == rival.tensors
    assert ours.n_trainable == rival.n_trainable


def test_counts_of_an_8b_model(quiet_torch):
    """The case of continued training: 1,134,559,232 of 9,164,820,480, known before a weight is read."""
    config = LoraConfig(r=32, lora_alpha=64, target_modules=LINEAR, modules_to_save=["embed_tokens", "lm_head"])
    model = transformers.LlamaConfig(**LLAMA_31_8B)
    rival = inject(transformers.LlamaForCausalLM, model, config)
    assert (rival.n_trainable, rival.n_all) == (1_134_559_232, 9_164_820_480)
    arch = describe(config_json(model, "LlamaForCausalLM"), {})
    assert expected(rival.config, arch).n_trainable == rival.n_trainable
