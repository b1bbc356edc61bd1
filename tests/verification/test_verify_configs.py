"""What a merged model's config.json may not say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from verification.made import EMBED, HEAD, VOCAB, Made, computed, make, write_as_another_tool, write_json

from suture.values import Checkpoint
from suture.verification import configs, reading


def faults(made: Made, config: dict, checkpoint: Checkpoint | None = None) -> dict[str, str]:
    write_json(made.folder / "config.json", config)
    stored = reading.read_folder(made.folder, (f.name for f in made.plan.files))
    checks = configs.check(made.plan, checkpoint or made.checkpoint, made.folder, stored.tensors)
    return {c.name: c.detail for c in checks if not c.ok}


@pytest.fixture
def untied(tmp_path) -> tuple[Made, dict]:
    made = make(tmp_path, head_of_its_own=True)
    return made, json.loads(made.plan.texts["config.json"])


def test_the_planned_config_passes(untied):
    assert faults(*untied) == {}


@pytest.mark.parametrize(
    "change",
    [{"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}],
    ids=["top", "text_config"],
)
def test_a_tie_flag_left_true_where_the_plan_unties(untied, change):
    made, config = untied
    detail = faults(made, config | change)["tie flags"]
    assert "is true, but the plan unties" in detail
    assert detail.startswith("text_config.tie" if "text_config" in change else "tie_word")


def test_the_flag_of_a_part_without_vocabulary_says_nothing(untied):
    made, config = untied
    assert faults(made, config | {"vision_config": {"tie_word_embeddings": True}}) == {}


def test_a_flag_that_is_not_stated_is_told(untied):
    made, _ = untied
    write_json(made.folder / "config.json", {"vocab_size": VOCAB})
    stored = reading.read_folder(made.folder)
    (check,) = (c for c in configs.check(*_given(made), stored.tensors) if c.name == "tie flags")
    assert check.ok
    assert "not stated: tie_word_embeddings, text_config.tie_word_embeddings" in check.detail


def _given(made: Made):
    return made.plan, made.checkpoint, made.folder


def test_a_head_of_its_own_beside_a_true_flag(tmp_path):
    made = make(tmp_path)
    tensors = computed(made)
    config = dict(made.checkpoint.config)
    write_as_another_tool(made, {**tensors, HEAD: tensors[EMBED]})
    assert faults(made, config) == {}
    write_as_another_tool(made, {**tensors, HEAD: ("BF16", np.zeros((VOCAB, 32), np.uint16))})
    assert f"{HEAD} is stored and differs" in faults(made, config)["tie flags"]


def test_an_untied_flag_without_a_head(tmp_path):
    made = make(tmp_path)
    config = made.checkpoint.config | {"tie_word_embeddings": False}
    assert faults(made, config)["tie flags"] == "tie_word_embeddings is false, but no output head is stored"


def test_the_vocabulary_that_did_not_grow_with_its_tensor(untied):
    made, config = untied
    before = replace(made.checkpoint.tensors[EMBED], shape=(VOCAB - 2, 32))
    smaller = replace(
        made.checkpoint,
        tensors={**made.checkpoint.tensors, EMBED: before},
        config={"vocab_size": VOCAB - 2, "text_config": {"vocab_size": VOCAB - 2}, "other": {"vocab_size": 7}},
    )
    grown = config | {"text_config": {"tie_word_embeddings": False, "vocab_size": VOCAB}, "other": {"vocab_size": 7}}
    assert faults(made, grown, smaller) == {}
    grown["text_config"]["vocab_size"] = VOCAB - 2
    detail = faults(made, grown, smaller)["vocabulary"]
    assert detail == f"text_config.vocab_size is {VOCAB - 2}, but {EMBED} has {VOCAB} rows"


def test_a_quantization_that_the_plan_does_not_have(untied):
    made, config = untied
    found = faults(made, config | {"text_config": {"tie_word_embeddings": False, "quantization_config": {}}})
    assert found["quantization"] == "text_config.quantization_config: the weights are not quantised"


def test_another_size(tmp_path):
    made = make(tmp_path)
    checkpoint = replace(made.checkpoint, config={**made.checkpoint.config, "num_hidden_layers": 2})
    config = {**made.checkpoint.config, "num_hidden_layers": 3}
    assert faults(made, config, checkpoint)["config.json"] == "num_hidden_layers is 3, not 2"


@pytest.mark.parametrize("text", [None, "", "[]"])
def test_no_config(tmp_path, text):
    made = make(tmp_path)
    path = made.folder / "config.json"
    path.unlink() if text is None else path.write_text(text)
    (check,) = configs.check(*_given(made), {})
    assert not check.ok
