"""A210: the head of another task."""

from __future__ import annotations

import shutil

import pytest
import tiny
from rule_cases import BOTH, HIDDEN, adapter, findings, llama, only, random
from safetensors.numpy import load_file, save_file
from transformers import LlamaForSequenceClassification


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, quiet_torch):
    """A language model, the same as a classifier, and a classifier's adapter from PEFT."""
    root = tmp_path_factory.mktemp("classifier")
    base = tiny.make_base(root / "base")
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=3)
    model.save_pretrained(root / "as-classifier")
    tiny.trained(tiny.wrapped(model, task_type="SEQ_CLS")).save_pretrained(root / "adapter")
    return base, root / "as-classifier", root / "adapter"


def test_a_classifier_on_a_language_model(classifier):
    base, _, tuned = classifier
    finding = only(base, tuned, "A210")
    assert "the head score" in finding.found
    assert "LlamaForCausalLM" in finding.found
    assert "AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)" in finding.do
    assert findings(base, tuned, "M301")


def test_a_classifier_on_a_classifier(classifier):
    _, base, tuned = classifier
    assert not findings(base, tuned, "A210")
    assert not findings(base, tuned, "M314")


def test_another_tensor_of_a_head_that_is_there(classifier, tmp_path):
    """It has no place, which is M301's to say; the task is the same."""
    _, base, tuned = classifier
    shutil.copytree(tuned, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.score.bias": random(3)}, path)
    assert findings(base, tmp_path / "adapter", "M301")
    assert not findings(base, tmp_path / "adapter", "A210")


def test_a_language_model_on_itself(classifier, tmp_path):
    tiny.trained(tiny.wrapped()).save_pretrained(tmp_path)
    assert not findings(classifier[0], tmp_path, "A210")


def test_a_value_head(base, tmp_path):
    tensors = {**BOTH, "v_head.summary.weight": random(1, HIDDEN)}
    assert "v_head" in only(base, adapter(tmp_path, tensors), "A210").found


def test_the_task_alone(base, tmp_path):
    finding = only(base, adapter(tmp_path, BOTH, task_type="QUESTION_ANS"), "A210")
    assert "QUESTION_ANS" in finding.found
    assert "num_labels" not in finding.do


def test_the_labels_of_a_head_of_two_matrices(base, tmp_path):
    head = {"classifier.dense.weight": random(9, HIDDEN), "classifier.out_proj.weight": random(4, 9)}
    finding = only(base, adapter(tmp_path, {**BOTH, **head}, task_type="SEQ_CLS"), "A210")
    assert "num_labels=4" in finding.do


def test_a_class_that_nobody_knows(tmp_path):
    base = llama(tmp_path / "base", architectures=["NovelForAnything"], model_type="novel")
    assert not findings(base, adapter(tmp_path / "adapter", BOTH, task_type="SEQ_CLS"), "A210")
