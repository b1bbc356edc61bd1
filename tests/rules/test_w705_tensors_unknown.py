"""W705: tensors that the class does not have."""

from __future__ import annotations

from dataclasses import replace

from model_cases import copied, edit, found, only, reweigh
from rule_cases import random
from tiny import make_model, wrapped

from suture.formats.quantized.signs import Quantized
from suture.model_folder import read_model_folder
from suture.rules.w705_tensors_unknown import RULE


def test_a_merge_that_was_none(tmp_path):
    """The inner model of PEFT, saved without merging: keys with base_layer and lora_A."""
    wrapped(make_model(tie=False)).base_model.model.save_pretrained(tmp_path)
    finding = only(tmp_path, "W705")
    assert finding.severity == "error"
    assert "base_layer" in finding.found
    assert not found(tmp_path, "W704"), "one defect, one rule"


def test_the_prefix_of_a_compiled_model(base_of, tmp_path):
    folder = copied(base_of("mistral"), tmp_path / "model")

    def rename(tensors):
        for name in list(tensors):
            tensors[f"_orig_mod.{name}"] = tensors.pop(name)

    assert only(reweigh(folder, rename), "W705").severity == "error"


def test_what_only_other_programs_use(base_of, tmp_path):
    folder = reweigh(
        copied(base_of("mistral"), tmp_path / "model"), lambda t: t.update({"mtp.fc.weight": random(4, 4)})
    )
    finding = only(folder, "W705")
    assert finding.severity == "info"
    assert "mtp.fc.weight" in finding.found


def test_what_stands_beside_a_packed_weight_is_asked_for_once(base_of, monkeypatch):
    """And not once for each unknown tensor, of which a quantised model has thousands."""
    model = read_model_folder(base_of("mistral"))
    model = replace(model, arch=replace(model.arch, unknown=tuple(sorted(model.tensors))))
    asked = []
    monkeypatch.setattr(Quantized, "siblings", property(lambda self: asked.append(1) or frozenset()))
    assert list(RULE.model(model))
    assert len(asked) == 1


def test_a_class_of_another_name_with_such_a_layer(base_of, tmp_path):
    folder = copied(base_of("mistral"), tmp_path / "model")
    reweigh(folder, lambda t: t.update({"model.tower.lora_A.weight": random(4, 4)}))
    edit(folder / "config.json", lambda c: c.update(architectures=["OurModel"], model_type="ours"))
    assert only(folder, "W705").severity == "warning"


def test_parameters_that_only_sound_alike(base_of):
    for name in ("deepseek-v3", "mistral"):
        assert not found(base_of(name), "W705")
