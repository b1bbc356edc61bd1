"""M307: experts that can be read in two ways."""

from __future__ import annotations

import dataclasses

import pytest
from rule_cases import BOTH, R, adapter, findings, only, random
from zoo import FAMILIES, build

EXPERTS, N, HIDDEN, INTER = "model.layers.{}.mlp.experts", 4, 32, 24


def down_pairs(r=R):
    pairs = {}
    for layer in (0, 1):
        pairs[EXPERTS.format(layer) + ".lora_A.weight"] = random(r * N, INTER)
        pairs[EXPERTS.format(layer) + ".lora_B.weight"] = random(HIDDEN, r * N)
    return pairs


def expert_adapter(folder, r=R, **config):
    config = {"r": r, "target_modules": [], "target_parameters": ["mlp.experts.down_proj"], **config}
    return adapter(folder, down_pairs(r), **config)


def test_a_square_expert_without_version(tmp_path_factory, tmp_path):
    base = changed_base(tmp_path_factory.mktemp("square"), moe_intermediate_size=HIDDEN)
    finding, _ = findings(base, square_adapter(tmp_path / "a", peft_version=None), "M307")  # one for each layer
    assert finding.severity == "error"
    assert "peft_version" in finding.expected
    assert not findings(base, square_adapter(tmp_path / "b", peft_version="0.21.2"), "M307")


def test_a_file_of_unsloth_without_layout(base_of, tmp_path):
    tuned = expert_adapter(tmp_path, base_model_name_or_path="unsloth/qwen3-moe")
    finding = only(base_of("qwen3-moe"), tuned, "M307")
    assert finding.severity == "warning"
    assert "expert_major" in finding.do


@pytest.mark.parametrize(
    "config",
    [
        {"base_model_name_or_path": "qwen/qwen3-moe"},
        {"base_model_name_or_path": "unsloth/qwen3-moe", "lora_B_layout": "rank_major"},
        {"base_model_name_or_path": "unsloth/qwen3-moe", "r": 1},
    ],
    ids=["not-unsloth", "marked", "rank-1"],
)
def test_files_that_need_no_warning(base_of, tmp_path, config):
    assert not findings(base_of("qwen3-moe"), expert_adapter(tmp_path, **config), "M307")


def test_a_single_expert_can_be_packed_in_one_way_only(tmp_path_factory, tmp_path):
    base = changed_base(tmp_path_factory.mktemp("one"), num_experts=1, num_experts_per_tok=1)
    tensors = {name: array[: R * 1] if "lora_A" in name else array[:, : R * 1] for name, array in down_pairs().items()}
    tuned = adapter(
        tmp_path,
        tensors,
        target_modules=[],
        target_parameters=["mlp.experts.down_proj"],
        base_model_name_or_path="unsloth/one",
    )
    assert not findings(base, tuned, "M303")
    assert not findings(base, tuned, "M307")


def test_a_dense_file_of_unsloth(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH, base_model_name_or_path="unsloth/tiny-llama"), "M307")


def changed_base(folder, **settings):
    """A mixture with other settings than the zoo's."""
    family = FAMILIES["qwen3-moe"]
    return build(dataclasses.replace(family, settings={**family.settings, **settings}), folder / "moe")


def square_adapter(folder, **config):
    pairs = {}
    for layer in (0, 1):
        pairs[EXPERTS.format(layer) + ".lora_A.weight"] = random(R * N, HIDDEN)
        pairs[EXPERTS.format(layer) + ".lora_B.weight"] = random(HIDDEN, R * N)
    return adapter(folder, pairs, target_modules=[], target_parameters=["mlp.experts.down_proj"], **config)
