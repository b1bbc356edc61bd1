"""Merged = unmerged, for every family of the zoo: linear layers, tied vocabularies, experts, routers."""

from __future__ import annotations

import pytest
from peft import LoraConfig
from zoo import FAMILIES, Family, linear_layers, load
from zoo_adapters import compare, make_adapter, merge_and_compare

from suture.errors import Findings

TIED = [f for f in FAMILIES.values() if f.tied]
MIXTURES = [f for f in FAMILIES.values() if f.experts]


def by_name(families):
    return pytest.mark.parametrize("family", families, ids=lambda f: f.name)


def lora(**settings) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, **settings)


def ends_of(family: Family, which: str) -> list[str]:
    return {"embedding": [*family.embeddings], "head": [family.head], "both": [*family.tied_ends]}[which]


@by_name(FAMILIES.values())
def test_all_linear_layers(family, base_of, tmp_path):
    base = base_of(family.name)
    config = lora(target_modules=linear_layers(family, load(family, base)))
    made = make_adapter(family, base, config, tmp_path / "adapter")
    comparison = merge_and_compare(family, base, made, tmp_path / "merged")
    assert comparison.same, comparison


@pytest.mark.parametrize("which", ["embedding", "head", "both"])
@by_name([f for f in TIED if f.separable])
def test_tied_ends_are_trained_apart(family, which, base_of, tmp_path):
    base = base_of(family.name)
    made = make_adapter(family, base, lora(target_modules=ends_of(family, which)), tmp_path / "adapter")
    comparison = merge_and_compare(family, base, made, tmp_path / "merged")
    assert comparison.same, comparison


@pytest.mark.parametrize("which", ["embedding", "head", "both"])
@by_name([f for f in TIED if not f.separable])
def test_ties_that_cannot_be_undone_are_refused(family, which, base_of, tmp_path):
    base, out = base_of(family.name), tmp_path / "merged"
    made = make_adapter(family, base, lora(target_modules=ends_of(family, which)), tmp_path / "adapter")
    with pytest.raises(Findings, match="T402"):
        merge_and_compare(family, base, made, out)
    assert not out.exists()


@by_name(MIXTURES)
def test_experts_and_attention(family, base_of, tmp_path):
    base = base_of(family.name)
    attention = [n for n in linear_layers(family, load(family, base)) if "self_attn" in n]
    config = lora(target_modules=attention, target_parameters=list(family.experts))
    made = make_adapter(family, base, config, tmp_path / "adapter")
    comparison = merge_and_compare(family, base, made, tmp_path / "merged")
    assert comparison.same, comparison


@pytest.mark.parametrize("expert", [0, 1], ids=["gate_up", "down"])
@by_name(MIXTURES)
def test_one_of_the_expert_parameters(family, expert, base_of, tmp_path):
    base = base_of(family.name)
    config = lora(target_modules=[], target_parameters=[family.experts[expert]], use_rslora=True)
    made = make_adapter(family, base, config, tmp_path / "adapter", std=0.05)
    comparison = merge_and_compare(family, base, made, tmp_path / "merged")
    assert comparison.same, comparison


@by_name(MIXTURES)
def test_router(family, base_of, tmp_path):
    base = base_of(family.name)
    config = lora(target_modules=[], target_parameters=[family.router])
    made = make_adapter(family, base, config, tmp_path / "adapter", std=0.5)
    comparison = merge_and_compare(family, base, made, tmp_path / "merged")
    assert comparison.same, comparison


def test_the_comparison_tells_the_adapter_from_the_base(base_of, tmp_path):
    family = FAMILIES["llama"]
    made = make_adapter(family, base_of("llama"), lora(target_modules=["q_proj"]), tmp_path / "adapter")
    assert compare(made.reference, made.reference).same
    assert not compare(made.reference, made.bare).same
