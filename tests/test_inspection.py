"""Counts from configs alone, against the numbers that PEFT gives for the live model."""

from __future__ import annotations

import json

import pytest
from peft import LoraConfig, get_peft_model
from zoo import FAMILIES, linear_layers, load
from zoo_adapters import load_base

from suture.codec import to_json
from suture.inspection import inspect

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
R32 = {
    "peft_type": "LORA",
    "r": 32,
    "lora_alpha": 64,
    "target_modules": ALL_LINEAR,
    "modules_to_save": ["embed_tokens", "lm_head"],
}


@pytest.fixture
def llama_8b(tmp_path):
    """Folders with nothing but configs."""
    for name, config in (("base/config.json", LLAMA_8B), ("adapter/adapter_config.json", R32)):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(json.dumps(config))
    return tmp_path / "base", tmp_path / "adapter"


def test_llama_8b_from_two_configs(llama_8b):
    found = inspect(*llama_8b)
    assert found.base.n_params == 8_030_261_248
    assert found.base.vocabulary_rows == 128_256
    assert found.adapter.expected.n_trainable == 1_134_559_232
    assert found.adapter.expected.n_total == 9_164_820_480
    assert f"{found.adapter.expected.percent:.2f}" == "12.38"
    assert found.adapter.expected.groups == {"LoRA": 83_886_080, "embeddings": 525_336_576, "head": 525_336_576}
    assert found.adapter.targets == dict.fromkeys(ALL_LINEAR, 32)
    assert (found.adapter.ranks, found.adapter.scales) == ({"32": 224}, {"2": 224})
    assert found.adapter.in_file is None


CASES = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "patterns": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 7}},
    "dora": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "ends": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "model.norm"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5, 7]},
    "all-linear": {"target_modules": "all-linear"},
    "layers": {"target_modules": ALL_LINEAR, "layers_to_transform": [1]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
@pytest.mark.parametrize("case", CASES)
def test_counts_are_those_of_peft(base_of, tmp_path, family, case):
    check_counts(FAMILIES[family], base_of(family), tmp_path, CASES[case])


@pytest.mark.parametrize("mode", ["all", "lora_only"])
def test_biases_are_counted_once(base_of, tmp_path, mode):
    check_counts(FAMILIES["qwen2"], base_of("qwen2"), tmp_path, {"target_modules": ["q_proj"], "bias": mode})


@pytest.mark.parametrize("name", ["gpt2", "qwen3-moe", "gpt-oss", "vit", "wav2vec2", "bert"])
def test_other_families(base_of, tmp_path, name):
    family = FAMILIES[name]
    layers = linear_layers(family, load(family, base_of(name)))
    settings = {"target_modules": layers, "target_parameters": list(family.experts) or None}
    check_counts(family, base_of(name), tmp_path, settings)


def check_counts(family, base, folder, settings):
    """Trainable and total numbers, by config and in the file, against those of the live model."""
    live = get_peft_model(load_base(family, base), LoraConfig(r=3, **settings))
    live.save_pretrained(folder)
    trainable, total = live.get_nb_trainable_parameters()
    found = inspect(base, folder).adapter
    assert (found.expected.n_trainable, found.expected.n_total) == (trainable, total)
    assert found.in_file == found.expected


@pytest.mark.filterwarnings("ignore")
def test_saved_copies_are_not_trained(base_of, tmp_path):
    model = load_base(FAMILIES["llama"], base_of("llama"), resize=8)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    found = inspect(base_of("llama"), tmp_path).adapter
    assert found.in_file == found.expected
    assert found.n_tensors == 6  # two pairs, and both resized ends


def test_ties_and_types(base_of):
    base = inspect(base_of("llama-tied")).base
    assert base.ties[0].members == ("model.embed_tokens.weight", "lm_head.weight")
    assert base.dtypes == {"F32": base.n_params}
    assert base.n_bytes == 4 * base.n_params


def test_another_method_is_not_counted(base_of, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LOHA", "r": 4}')
    found = inspect(base_of("llama"), tmp_path).adapter
    assert (found.method, found.expected, found.in_file) == ("LOHA", None, None)


def test_it_is_json(base_of, llama_8b):
    assert json.loads(json.dumps(to_json(inspect(*llama_8b))))["adapter"]["expected"]["n_trainable"] == 1_134_559_232
