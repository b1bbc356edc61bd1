"""M315: an adapter that reaches into the image encoder."""

from __future__ import annotations

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from rule_cases import BOTH, adapter, findings, only
from zoo import FAMILIES, load


def tuned(base_of, family, folder, targets):
    model = get_peft_model(load(FAMILIES[family], base_of(family)), LoraConfig(r=2, target_modules=targets))
    tiny.trained(model).save_pretrained(folder)
    return base_of(family), folder


def test_one_name_in_two_towers(base_of, tmp_path):
    finding = only(*tuned(base_of, "gemma3-image", tmp_path, ["q_proj"]), "M315")
    assert finding.severity == "info"
    assert "2 of the text tower, 2 of the vision tower" in finding.found


@pytest.mark.parametrize("targets", [r".*language_model.*q_proj", r".*vision_tower.*q_proj"])
def test_a_pattern_that_names_a_tower(base_of, tmp_path, targets):
    assert not findings(*tuned(base_of, "gemma3-image", tmp_path, targets), "M315")


def test_the_bridge_between_the_towers(base_of, tmp_path):
    model = load(FAMILIES["gemma3-image"], base_of("gemma3-image"))
    bridge = {"target_parameters": ["mm_input_projection_weight"]}
    config = LoraConfig(r=2, target_modules=r".*vision_tower.*q_proj", **bridge)
    tiny.trained(get_peft_model(model, config)).save_pretrained(tmp_path)
    assert not findings(base_of("gemma3-image"), tmp_path, "M315")


def test_encoder_and_decoder_are_one_model(base_of, tmp_path):
    assert not findings(*tuned(base_of, "bart", tmp_path, ["q_proj"]), "M315")


def test_a_language_model(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "M315")
