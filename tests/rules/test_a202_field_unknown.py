"""A202: fields of a config that nobody here knows."""

from __future__ import annotations

import dataclasses

import pytest
from rule_cases import BOTH, adapter, findings, only

from suture.rules.a202_field_unknown import KNOWN


def test_an_unknown_field(base, tmp_path):
    finding = only(base, adapter(tmp_path, BOTH, use_novel_lora=True), "A202")
    assert finding.where == "adapter_config.json: use_novel_lora"
    assert "--ignore A202" in finding.do


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
def test_an_unknown_field_that_is_off(base, tmp_path, value):
    assert not findings(base, adapter(tmp_path, BOTH, use_novel_lora=value), "A202")


@pytest.mark.parametrize("layout", ["rank_major", "expert_major", None])
def test_known_layouts(base, tmp_path, layout):
    assert not findings(base, adapter(tmp_path, BOTH, lora_B_layout=layout), "A202")


@pytest.mark.parametrize("layout", ["diagonal", 3, ["rank_major"]])
def test_an_unknown_layout(base, tmp_path, layout):
    assert "lora_B_layout" in only(base, adapter(tmp_path, BOTH, lora_B_layout=layout), "A202").where


def test_other_methods_have_other_fields(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH, peft_type="LOHA", rank_dropout=0.1), "A202")


def test_all_fields_of_peft_are_known():
    from peft import LoraConfig

    assert {f.name for f in dataclasses.fields(LoraConfig)} - KNOWN == set()
