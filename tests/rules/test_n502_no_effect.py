"""N502: adapters that do nothing."""

from __future__ import annotations

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from rule_cases import BOTH, EMBED, HIDDEN, Q0, Q1, VOCAB, adapter, findings, only, random
from zoo import FAMILIES, load

import suture

TOKENS = f"{EMBED}.token_adapter.trainable_tokens_delta"
UNTRAINED = {name: array * ("lora_A" in name) for name, array in BOTH.items()}


def test_all_factors_b_are_zero(base, tmp_path):
    assert "all of its 2 updates" in only(base, adapter(tmp_path, UNTRAINED), "N502").found


def test_all_factors_a_are_zero(base, tmp_path):
    """Methods such as MiCA start from A = 0."""
    tensors = {name: array * ("lora_B" in name) for name, array in BOTH.items()}
    assert findings(base, adapter(tmp_path, tensors), "N502")


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"init_lora_weights": "gaussian"}], ids=str)
def test_a_fresh_adapter_of_peft(base_of, tmp_path, settings):
    config = LoraConfig(r=2, target_modules=["q_proj"], **settings)
    get_peft_model(load(FAMILIES["llama"], base_of("llama")), config).save_pretrained(tmp_path)
    assert findings(base_of("llama"), tmp_path, "N502")


def test_one_value_is_not_zero(base, tmp_path):
    tensors = {name: array.copy() for name, array in UNTRAINED.items()}
    tensors[next(n for n in tensors if "lora_B" in n)][0, 0] = 1e-30
    assert not findings(base, adapter(tmp_path, tensors), "N502")


def test_nan_is_no_zero(base, tmp_path):
    tensors = {name: array * np.float32("nan" if "lora_B" in name else 1) for name, array in BOTH.items()}
    assert not findings(base, adapter(tmp_path, tensors), "N502")


@pytest.mark.parametrize(
    ("extra", "config"),
    [
        ({f"{EMBED}.weight": random(VOCAB, HIDDEN)}, {"modules_to_save": ["embed_tokens"]}),
        (
            {f"{EMBED}.token_adapter.trainable_tokens_delta": np.zeros((1, HIDDEN), np.float32)},
            {"trainable_token_indices": [3]},
        ),
    ],
    ids=["matrix", "tokens"],
)
def test_something_is_replaced(base, tmp_path, extra, config):
    assert not findings(base, adapter(tmp_path, {**UNTRAINED, **extra}, **config), "N502")


def test_a_magnitude_of_zero_is_an_effect(base, tmp_path):
    magnitudes = {f"{module}.lora_magnitude_vector": np.zeros(HIDDEN, np.float32) for module in (Q0, Q1)}
    assert not findings(base, adapter(tmp_path, {**BOTH, **magnitudes}, use_dora=True), "N502")


def test_headers_alone_do_not_tell(base, tmp_path):
    assert "N502" not in {f.code for f in suture.check(base, adapter(tmp_path, UNTRAINED), deep=False)}


def test_a_scale_of_zero(base, tmp_path):
    assert "all of its 2 updates" in only(base, adapter(tmp_path, BOTH, lora_alpha=0), "N502").found
