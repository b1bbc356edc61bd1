"""A213: what servers cannot hold."""

from __future__ import annotations

import pytest
from rule_cases import BOTH, EMBED, HEAD, HIDDEN, Q0, VOCAB, adapter, embedding_pair, findings, only, random

M = "lora_magnitude_vector"
CASES = {
    "in full": ({f"{HEAD}.weight": random(VOCAB, HIDDEN)}, {"modules_to_save": ["lm_head"]}),
    "trained tokens": (
        {f"{EMBED}.token_adapter.trainable_tokens_delta": random(2, HIDDEN)},
        {"trainable_token_indices": [1, 2]},
    ),
    "on the embedding": (embedding_pair(), {"target_modules": ["q_proj", "embed_tokens"]}),
    "DoRA": ({f"{Q0}.{M}": random(HIDDEN), f"{Q0.replace('0', '1')}.{M}": random(HIDDEN)}, {"use_dora": True}),
    "differ between layers": ({}, {"alpha_pattern": {"layers.0.self_attn.q_proj": 2}}),
    "use_rslora": ({}, {"use_rslora": True}),
}


@pytest.mark.parametrize("part", sorted(CASES))
def test_a_part(base, tmp_path, part):
    tensors, config = CASES[part]
    finding = only(base, adapter(tmp_path, {**BOTH, **tensors}, **config), "A213")
    assert finding.severity == "info"
    assert part in finding.found


def test_several_parts_are_one_finding(base, tmp_path):
    found = only(base, adapter(tmp_path, BOTH, use_rslora=True, rank_pattern={"q_proj": 2}), "A213").found
    assert "use_rslora" in found
    assert "ranks" in found


def test_plain_lora(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "A213")


def test_fused_experts(base_of, tmp_path):
    from peft import LoraConfig, get_peft_model
    from zoo import FAMILIES, load

    model = load(FAMILIES["mixtral"], base_of("mixtral"))
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["gate_up_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path)
    assert "fused experts" in only(base_of("mixtral"), tmp_path, "A213").found
