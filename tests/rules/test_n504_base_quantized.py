"""N504: bases of quantised weights."""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import BOTH, HIDDEN, INTER, Q0, adapter, findings, llama, only

FOUR_BIT = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def test_the_config_says_so(tmp_path):
    base = llama(tmp_path / "tiny-llama-bnb-4bit", quantization_config=FOUR_BIT)
    tuned = adapter(tmp_path / "adapter", BOTH, base_model_name_or_path="org/tiny-llama-bnb-4bit")
    finding = only(base, tuned, "N504")
    assert finding.where == "config.json: quantization_config"
    assert "bitsandbytes" in finding.found
    assert "by its name that is org/tiny-llama." in finding.do


def test_a_nested_config_says_so(tmp_path):
    base = llama(tmp_path / "base", extra={"text_config": {"quantization_config": FOUR_BIT}})
    finding = only(base, adapter(tmp_path / "adapter", BOTH), "N504")
    assert finding.where == "config.json: extra.text_config.quantization_config"


def test_codes_in_the_place_of_a_weight(tmp_path):
    base = llama(tmp_path / "base", tensors={f"{Q0}.weight": np.zeros((HIDDEN, HIDDEN), np.uint8)})
    finding = only(base, adapter(tmp_path / "adapter", BOTH), "N504")
    assert f"{Q0}.weight" in finding.where
    assert "U8" in finding.found


def test_codes_that_are_not_touched(tmp_path):
    codes = {"model.layers.0.mlp.up_proj.weight": np.zeros((INTER, HIDDEN), np.uint8)}
    base = llama(tmp_path / "base", tensors=codes)
    assert not findings(base, adapter(tmp_path / "adapter", BOTH), "N504")


@pytest.mark.parametrize("value", [None, {}])
def test_an_empty_field(tmp_path, value):
    base = llama(tmp_path / "base", quantization_config=value)
    assert not findings(base, adapter(tmp_path / "adapter", BOTH), "N504")
