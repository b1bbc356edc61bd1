"""M305: the config against the file, both ways, and what PEFT adds without being asked."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model
from rule_cases import BOTH, EMBED, HEAD, HIDDEN, PREFIX, Q0, VOCAB, adapter, findings, only, pair, random
from safetensors.numpy import load_file, save_file
from zoo import FAMILIES, linear_layers, load
from zoo_adapters import load_base

K0 = Q0.replace("q_proj", "k_proj")


def test_the_file_lacks_a_module(base, tmp_path):
    finding = only(base, adapter(tmp_path, pair(Q0)), "M305")
    assert finding.found.startswith("2 of the 4 tensors that the config asks for are not in the file")
    assert "layers.1.self_attn.q_proj" in finding.found


def test_the_file_lacks_a_saved_module(base, tmp_path):
    finding = only(base, adapter(tmp_path, BOTH, modules_to_save=["model.norm"]), "M305")
    assert f"{PREFIX}model.norm.weight" in finding.found


def test_the_config_does_not_ask_for_a_module(base, tmp_path):
    finding = only(base, adapter(tmp_path, {**BOTH, **pair(K0)}), "M305")
    assert finding.found.startswith("2 of 6 tensors are not asked for by the config")
    assert "k_proj" in finding.found


@pytest.mark.parametrize("extra", ["model.norm.weight", f"{Q0}.lora_magnitude_vector"])
def test_the_config_does_not_ask_for_a_tensor(base, tmp_path, extra):
    assert extra in only(base, adapter(tmp_path, {**BOTH, extra: random(HIDDEN)}), "M305").found


def test_the_config_asks_for_dora(base, tmp_path):
    assert "lora_magnitude_vector" in only(base, adapter(tmp_path, BOTH, use_dora=True), "M305").found


def test_a_list_of_tokens_of_another_length(base, tmp_path):
    tensors = {**BOTH, f"{EMBED}.token_adapter.trainable_tokens_delta": random(2, HIDDEN)}
    finding = only(base, adapter(tmp_path, tensors, trainable_token_indices=[1, 2, 3]), "M305")
    assert "2 rows" in finding.found
    assert "3 tokens" in finding.found


def test_config_and_file_agree(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "M305")


def test_saved_embeddings_need_not_be_asked_for(base, tmp_path):
    tensors = {**BOTH, f"{EMBED}.weight": random(VOCAB + 2, HIDDEN), f"{HEAD}.weight": random(VOCAB + 2, HIDDEN)}
    assert not findings(base, adapter(tmp_path, tensors), "M305")


def test_nothing_is_compared_when_names_are_unmatched(base, tmp_path):
    tensors = {PREFIX + name.removeprefix("model."): array for name, array in BOTH.items()}
    assert not findings(base, adapter(tmp_path, tensors), "M305")


@pytest.mark.parametrize("targets", [["q_proj"], r"language_model\.model\.layers\..*\.q_proj"], ids=["list", "regex"])
def test_names_on_disk_count_as_the_modules(base_of, tmp_path, targets):
    """An adapter of an older Transformers names modules of Gemma 3 as they are on disk."""
    modules = [f"language_model.model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    tensors = {key: array for module in modules for key, array in pair(module, 32, 32).items()}
    config = {"target_modules": targets, "exclude_modules": r".*vision_tower.*"}
    assert not findings(base_of("gemma3-image"), adapter(tmp_path / "whole", tensors, **config), "M305")
    half = adapter(tmp_path / "half", pair(modules[0], 32, 32), **config)
    assert only(base_of("gemma3-image"), half, "M305").found.startswith("2 of the 4 tensors that the config asks for")


EXPERTS = "model.layers.{}.mlp.experts.{}.{}_proj"


def single_experts(count: int = 4) -> dict:
    sizes = {"gate": (32, 24), "up": (32, 24), "down": (24, 32)}
    names = [(EXPERTS.format(i, e, p), sizes[p]) for i in (0, 1) for e in range(count) for p in sizes]
    return {key: array for name, (n_in, n_out) in names for key, array in pair(name, n_in, n_out).items()}


@pytest.mark.parametrize(("n_experts", "complete"), [(4, True), (3, False)])
def test_single_experts_of_an_older_transformers(base_of, tmp_path, n_experts, complete):
    tuned = adapter(tmp_path, single_experts(n_experts), target_modules=["gate_proj", "up_proj", "down_proj"])
    assert bool(findings(base_of("qwen3-moe"), tuned, "M305")) != complete


def test_biases_of_other_names(base_of, tmp_path):
    """With bias="all" older versions of PEFT saved whatever has "bias" in its name."""
    model = load(FAMILIES["gpt-oss"], base_of("gpt-oss"))
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], bias="all")).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(path), f"{PREFIX}model.layers.0.mlp.experts.down_proj_bias": random(4, 32)}, path)
    assert not findings(base_of("gpt-oss"), tmp_path, "M305")


def test_a_pattern_that_would_match_experts_on_disk(base_of, tmp_path):
    """Names on disk count only where the adapter uses them."""
    sizes = {"q": (32, 32), "k": (32, 16), "v": (32, 16), "o": (32, 32)}
    names = [(f"model.layers.{i}.self_attn.{p}_proj", sizes[p]) for i in (0, 1) for p in sizes]
    tensors = {key: array for name, (n_in, n_out) in names for key, array in pair(name, n_in, n_out).items()}
    assert not findings(base_of("qwen3-moe"), adapter(tmp_path, tensors, target_modules=r".*_proj"), "M305")


def test_copies_of_layers_that_are_no_embeddings(base, tmp_path):
    tensors = {**BOTH, f"{Q0}.base_layer.weight": random(HIDDEN, HIDDEN)}
    assert f"{Q0}.base_layer.weight" in only(base, adapter(tmp_path, tensors), "M305").found


def test_single_experts_that_nobody_asked_for(base_of, tmp_path):
    tuned = adapter(tmp_path, single_experts(), target_modules=["gate_proj", "up_proj"])
    assert only(base_of("qwen3-moe"), tuned, "M305").found.startswith("16 of 48 tensors are not asked for")


ADDED_BY_PEFT = {
    "resized": (8, {}),
    "resized-saved": (8, {"modules_to_save": ["embed_tokens"]}),
    "resized-tokens": (8, {"trainable_token_indices": [96, 97]}),
    "tied-lora": (0, {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "ensure_weight_tying": True}),
    "tied-saved": (0, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "tied-tokens": (0, {"trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [1, 5]}}),
    "biases": (0, {"bias": "all"}),
    "layers": (0, {"layers_to_transform": [1]}),
    "regex": (0, {"target_modules": r".*\.(q|down)_proj"}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ADDED_BY_PEFT)
def test_what_peft_adds_by_itself(base_of, tmp_path, name):
    family, (resize, settings) = FAMILIES["llama-tied"], ADDED_BY_PEFT[name]
    config = LoraConfig(r=2, **{"target_modules": ["q_proj"], **settings})
    get_peft_model(load_base(family, base_of(family.name), resize), config).save_pretrained(tmp_path)
    assert not findings(base_of(family.name), tmp_path, "M305")


@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt-oss", "vit", "whisper"])
def test_all_linear_layers_of_other_families(base_of, tmp_path, name, bias):
    family = FAMILIES[name]
    model = load(family, base_of(name))
    layers, experts = linear_layers(family, model), list(family.experts) or None
    config = LoraConfig(r=2, target_modules=layers, target_parameters=experts, bias=bias)
    get_peft_model(model, config).save_pretrained(tmp_path)
    assert not findings(base_of(name), tmp_path, "M305")


def test_a_name_that_the_base_does_not_have(base, tmp_path):
    finding = only(base, adapter(tmp_path, BOTH, modules_to_save=["value_head"]), "M305")
    assert "value_head" in finding.found
    assert "matrix" in only(base, adapter(tmp_path, BOTH, target_parameters=["norm.weight"]), "M305").found


def test_heads_that_peft_names_for_every_classifier(base_of, tmp_path):
    family = FAMILIES["vit"]
    config = LoraConfig(r=2, target_modules=r".*\.(query|q_proj)", modules_to_save=["classifier", "score"])
    get_peft_model(load(family, base_of(family.name)), config).save_pretrained(tmp_path)
    assert not findings(base_of(family.name), tmp_path, "M305")


def test_tying_does_not_let_other_matrices_in(tied_base, tmp_path):
    tied = {**BOTH, **pair(HEAD, HIDDEN, VOCAB), f"{Q0}.base_layer.weight": random(HIDDEN, HIDDEN)}
    tuned = adapter(tmp_path, tied, target_modules=["q_proj", "lm_head"], ensure_weight_tying=True)
    assert f"{Q0}.base_layer.weight" in only(tied_base, tuned, "M305").found


def test_tokens_of_one_end_that_are_other_tokens_than_those_of_the_other(tied_base, tmp_path):
    tensors = {**BOTH, f"{EMBED}.token_adapter.trainable_tokens_delta": random(2, HIDDEN)}
    indices = {"embed_tokens": [1, 2], "lm_head": [3, 4, 5]}
    finding = only(tied_base, adapter(tmp_path / "apart", tensors, trainable_token_indices=indices), "M305")
    assert f"{HEAD}.token_adapter" in finding.found
    same = {"embed_tokens": [1, 2], "lm_head": [1, 2]}
    assert not findings(tied_base, adapter(tmp_path / "same", tensors, trainable_token_indices=same), "M305")
