"""M314: parameters in no file."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from rule_cases import BOTH, HIDDEN, adapter, findings, llama, only, random
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from suture import pipeline
from suture.rules.m314_parameter_missing import check
from suture.values import Options


def without(base, *names):
    path = base / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k not in names}, path, metadata={"format": "pt"})
    return base


def test_a_language_model_that_is_called_a_classifier(base, tmp_path):
    wrong = llama(tmp_path / "base", architectures=["LlamaForSequenceClassification"])
    finding = only(wrong, adapter(tmp_path / "adapter", BOTH), "M314")
    assert "score.weight" in finding.where
    assert finding.severity == "error"


def test_the_norm_is_gone(tmp_path):
    base = without(llama(tmp_path / "base"), "model.norm.weight")
    assert "1 of 21 parameters" in only(base, adapter(tmp_path / "adapter", BOTH), "M314").found


@pytest.mark.parametrize(("which", "n_left"), [("3.w2", 3), ("2.w1", 7)])
def test_an_experts_weight_is_gone(base_of, tmp_path, which, n_left):
    base, tuned = tmp_path / "base", tmp_path / "adapter"
    model = AutoModelForCausalLM.from_pretrained(base_of("mixtral"))
    model.save_pretrained(base)
    tiny.trained(get_peft_model(model, LoraConfig(target_modules=["q_proj"]))).save_pretrained(tuned)
    assert not findings(base, tuned, "M314")
    without(base, f"model.layers.1.block_sparse_moe.experts.{which}.weight")
    finding = only(base, tuned, "M314")
    assert f"{n_left} tensors do not fit together" in finding.found


def test_the_merge_goes_on_when_told(tmp_path):
    base = without(llama(tmp_path / "base"), "model.norm.weight")
    tuned = adapter(tmp_path / "adapter", BOTH)
    with pytest.raises(pipeline.Findings, match="M314"):
        pipeline.plan(base, tuned)
    assert pipeline.plan(base, tuned, options=Options(ignore=("M314",))).operations


def test_a_head_that_is_tied(tied_base, tmp_path):
    assert not findings(tied_base, adapter(tmp_path, BOTH), "M314")


def test_a_base_that_is_whole(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "M314")


def test_a_quantised_base_has_other_names(tmp_path):
    base = without(llama(tmp_path / "base", quantization_config={"quant_method": "novel"}), "model.norm.weight")
    assert not findings(base, adapter(tmp_path / "adapter", BOTH), "M314")


def test_a_conversion_that_cannot_be_followed(tmp_path):
    base = without(llama(tmp_path / "base"), "model.norm.weight")
    case = pipeline.load_case(base, adapter(tmp_path / "adapter", BOTH), Options(), pipeline.Reading())
    assert [*check(case)]
    unclear = dataclasses.replace(case.arch, opaque={"model.norms": "Novel()"})
    assert not [*check(dataclasses.replace(case, arch=unclear))]


def test_what_the_adapter_brings_is_not_missing(tmp_path):
    base = llama(tmp_path / "base", architectures=["LlamaForSequenceClassification"])
    tensors = {**BOTH, "score.weight": random(2, HIDDEN)}
    tuned = adapter(tmp_path / "adapter", tensors, modules_to_save=["score"])
    assert not findings(base, tuned, "M314")
    assert findings(base, tuned, "M308"), "which says that it has no place yet"


def test_a_trained_head(tmp_path, quiet_torch):
    model = LlamaForSequenceClassification(tiny.make_model().config)
    model.save_pretrained(tmp_path / "base")
    tiny.trained(tiny.wrapped(model, task_type="SEQ_CLS")).save_pretrained(tmp_path / "adapter")
    assert not findings(tmp_path / "base", tmp_path / "adapter", "M314")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["hidden_size"] != HIDDEN


@pytest.mark.parametrize("family", ["bert", "bart", "mixtral", "gemma3-image", "whisper", "t5"])
def test_names_on_disk_are_not_those_in_memory(base_of, tmp_path, family):
    """Conversions, several ties, and parameters that Transformers leaves out of its files."""
    from suture.arch import describe
    from suture.formats import read_checkpoint

    checkpoint = read_checkpoint(base_of(family))
    assert describe(checkpoint.config, checkpoint.tensors).source != "headers"
    assert not findings(base_of(family), adapter(tmp_path, BOTH), "M314")
