"""T406: the adapter's special tokens against the base's settings."""

from __future__ import annotations

import json

import pytest
import tiny
from rule_cases import BOTH, adapter, findings, llama, only, tokenizer
from transformers import AutoModelForCausalLM

TOKENS = {"<s>": 1, "</s>": 2, "<|end|>": 5, "<pad>": 0}


def specials(folder, template=False, **names):
    """Put a tokenizer into a folder."""
    tokenizer(folder, TOKENS)
    config = {**names, **({"chat_template": "{{ messages }}"} if template else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def ids(folder, **of):
    """Say what the base stops at."""
    (folder / "generation_config.json").write_text(json.dumps(of))
    return folder


@pytest.mark.parametrize(
    ("base", "brought", "severity"),
    [
        ({"eos_token_id": 2}, {"eos_token": "<|end|>"}, "warning"),
        ({"eos_token_id": [1, 2]}, {"eos_token": {"content": "<|end|>", "lstrip": False}}, "warning"),
        ({"eos_token_id": 2, "pad_token_id": 0}, {"eos_token": "</s>", "pad_token": "</s>"}, "info"),
        ({"bos_token_id": 1}, {"bos_token": "<|end|>"}, "info"),
    ],
)
def test_another_token(tmp_path, base, brought, severity):
    folder = ids(llama(tmp_path / "base"), **base)
    finding = only(folder, specials(adapter(tmp_path / "adapter", BOTH), **brought), "T406")
    assert finding.severity == severity


@pytest.mark.parametrize(
    ("base", "brought"),
    [
        ({"eos_token_id": 2}, {"eos_token": "</s>"}),
        ({"eos_token_id": [2, 5]}, {"eos_token": "<|end|>"}),
        ({"eos_token_id": 2}, {"eos_token": "</s>", "pad_token": "</s>"}),
        ({}, {"eos_token": "<|end|>"}),
        ({"eos_token_id": 2}, {"eos_token": None, "bos_token": "unknown"}),
    ],
)
def test_the_same_tokens(tmp_path, base, brought):
    folder = ids(llama(tmp_path / "base"), **base)
    assert not findings(folder, specials(adapter(tmp_path / "adapter", BOTH), **brought), "T406")


def test_the_config_counts_where_generation_says_nothing(tmp_path):
    folder = llama(tmp_path / "base", eos_token_id=2)
    assert findings(folder, specials(adapter(tmp_path / "adapter", BOTH), eos_token="<|end|>"), "T406")


def test_a_base_that_contradicts_itself(tmp_path):
    """The adapter brings what the base has: it changes nothing."""
    folder = specials(ids(llama(tmp_path / "base"), eos_token_id=2), eos_token="<|end|>")
    assert not findings(folder, specials(adapter(tmp_path / "adapter", BOTH), eos_token="<|end|>"), "T406")


def test_a_template_that_was_lost(tmp_path):
    folder = specials(llama(tmp_path / "base"), template=True)
    finding = only(folder, specials(adapter(tmp_path / "adapter", BOTH)), "T406")
    assert finding.severity == "info"
    assert "chat template" in finding.found


def test_no_tokenizer(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "T406")


def test_what_a_trainer_saves(tmp_path, quiet_torch):
    """Transformers' own files: base and tokenizer saved, the same tokenizer beside the adapter."""
    base = tiny.make_base(tmp_path / "base")
    tiny.trained(tiny.wrapped(AutoModelForCausalLM.from_pretrained(base))).save_pretrained(tmp_path / "adapter")
    tiny.make_tokenizer().save_pretrained(tmp_path / "adapter")
    assert not findings(base, tmp_path / "adapter", "T406")
    other = tiny.make_tokenizer()
    other.eos_token = "<unk>"
    other.save_pretrained(tmp_path / "adapter")
    assert only(base, tmp_path / "adapter", "T406").severity == "warning"
