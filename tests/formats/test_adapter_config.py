"""Types in an adapter_config.json: all that PEFT writes passes, and nothing that would trip a later reader."""

from __future__ import annotations

import json

import pytest
from peft import LoraConfig
from rule_cases import BOTH, LORA, adapter

from suture import targets
from suture.errors import FormatError
from suture.formats import read_adapter
from suture.formats.adapter_config import check_types

NAMES = ("target_modules", "exclude_modules", "target_parameters", "modules_to_save")
WRONG = [
    *(
        (field, value)
        for field in (*NAMES, "layers_pattern")
        for value in (3, True, 1.5, ["q_proj", 3], [None], [["q"]])
    ),
    *((field, {"q_proj": 1}) for field in NAMES),
    *((field, value) for field in ("rank_pattern", "alpha_pattern") for value in (["q_proj"], "q_proj", 3, True)),
    *((f, {"q": v}) for f in ("rank_pattern", "alpha_pattern") for v in ("8", None, [8], True, float("inf"), 10**400)),
    *(("layers_to_transform", value) for value in ("0", float("inf"), 1.5, True, ["0"], [0.5], {"0": 1})),
    *(("trainable_token_indices", value) for value in (3, True, "1", ["1"], [1.5], {"e": 3}, {"e": ["1"]}, [[1]])),
    *((field, value) for field in ("r", "lora_alpha") for value in ("8", [8], True, float("nan"), 10**400, {})),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda v: repr(v)[:24])
def test_a_wrong_type_is_named(field, value):
    with pytest.raises(FormatError) as caught:
        check_types({**LORA, field: value})
    error = caught.value
    assert error.found.startswith(f"{field} is ")
    assert len(error.found) < 120
    assert (error.where, bool(error.expected), bool(error.do)) == ("adapter_config.json", True, True)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*", "layers_pattern": "h"},
        {"target_modules": ["q_proj"], "exclude_modules": [], "modules_to_save": ["lm_head"], "layers_pattern": ["h"]},
        {"target_modules": {"q_proj"}, "target_parameters": ("experts.down_proj",), "modules_to_save": "lm_head"},
        dict.fromkeys((*NAMES, "rank_pattern", "alpha_pattern", "layers_to_transform", "trainable_token_indices")),
        {"layers_to_transform": 3, "rank_pattern": {}, "alpha_pattern": {"q": 0.5, "v": 4}, "lora_alpha": 2.5},
        {"layers_to_transform": [0, 1], "rank_pattern": {"q": 4}, "trainable_token_indices": [1, 2]},
        {"trainable_token_indices": {"embed_tokens": [0, 1], "lm_head": []}},
        {"peft_type": "ADALORA", "r": None, "rank_pattern": {"q.lora_E": [True, False]}},
    ],
)
def test_what_peft_writes(fields):
    check_types({**LORA, **fields})


@pytest.mark.parametrize(
    "settings",
    [{}, {"rank_pattern": {"a.q_proj": 4}, "layers_to_transform": 0}, {"trainable_token_indices": {"e": [1]}}],
)
def test_what_this_peft_saves(tmp_path, settings):
    LoraConfig(**{"target_modules": ["q_proj"], **settings}).save_pretrained(tmp_path)
    check_types(json.loads((tmp_path / "adapter_config.json").read_text()))


@pytest.mark.parametrize("fields", [{"rank_pattern": [1]}, {"modules_to_save": 3}, {"layers_to_transform": "x"}])
def test_it_is_looked_at_as_the_adapter_is_read(tmp_path, fields):
    with pytest.raises(FormatError, match=next(iter(fields))):
        read_adapter(adapter(tmp_path, BOTH, **fields))


def test_what_another_method_means_by_a_field(tmp_path):
    """It is no rank of LoRA: whoever asks for one is told so."""
    config = read_adapter(adapter(tmp_path, BOTH, peft_type="ADALORA", rank_pattern={"q_proj": [True]})).config
    with pytest.raises(FormatError, match="rank_pattern is"):
        targets.rank_and_alpha(config, "q_proj")
