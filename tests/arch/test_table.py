"""The table says what Transformers says, of every class and config it answers for; of anything else it says nothing."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import make_table
import probing
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from arch.loading import headers as headers_of
from arch.loading import read
from suture import arch
from suture.arch import meta, table
from suture.arch.fields import accepts
from suture.errors import SutureError

# config.json of published models, without what says nothing about the model.
REAL = json.loads(Path(__file__).with_name("real_configs.json").read_text())
LLAMA = REAL["Llama-3.2-1B"]
TINY = {**LLAMA, "num_hidden_layers": 2, "vocab_size": 200, "eos_token_id": 2, "bos_token_id": 1}
CLASSES = sorted(table._table()["classes"])


@functools.cache
def _model(config: str):
    plain = json.loads(config)
    return meta.build(meta.find_class(plain), plain).model


def saved(config):
    """Headers of the files that Transformers would write."""
    return probing.saved_headers(_model(json.dumps(config)))


def own(config):
    """Headers by the names of the class."""
    return probing.headers({n: p.shape for n, p in meta.params(_model(json.dumps(config))).items()})


def assert_same(config, tensors):
    """The table answers, and as Transformers does."""
    found = table.lookup(config, tensors)
    assert found is not None
    wanted = arch.build(config, tensors)
    assert found.source == f"table of {wanted.source}"
    assert dataclasses.replace(found, source=wanted.source) == wanted
    assert list(found.params) == list(wanted.params)


@pytest.mark.parametrize("name", REAL)
def test_published_models(name):
    config = REAL[name]
    assert_same(config, saved(config))
    assert_same(config, own(config))


def test_every_class_has_a_published_model():
    assert {config["architectures"][0] for config in REAL.values()} == set(CLASSES)


@pytest.mark.parametrize("name", ["llama-tied", "qwen3", "mixtral", "gemma2", "bloom"])
def test_files_of_tiny_models(name, base_of):
    config, tensors = read(base_of(name))
    assert_same(config, headers_of(tensors))


def entry_of(name):
    whole = table._table()
    entry = whole["classes"][name]
    return {**entry, "fields": {**whole["fields"], **entry["fields"]}}


def drawn(name, rng):
    """A config of a class with random sizes, switches, and values that the table takes for harmless."""
    entry, subject = entry_of(name), next(s for s in make_table.SUBJECTS if s.model == name)
    config = {**subject.config(**probing.draw(rng, subject, list(entry["sizes"])))}
    config |= {k: rng.choice((True, False)) for k in entry["switches"]}
    if rng.random() < 0.3:
        del config[rng.choice([k for k in entry["sizes"] if k != subject.layers])]
    for key in rng.sample(sorted(entry["fields"]), 12):
        choices = [None, True, 0, 3, 0.5, 1, "x", "gelu", "bfloat16", {}, [], [0, 1], -1, 70000, {"type": "x"}]
        taken = [v for v in choices if accepts(entry["fields"][key], v, layers=config[subject.layers], vocab=20)]
        config |= {key: rng.choice(taken)} if taken else {}
    return config


def agrees(config):
    """Whether the table answered; it may not, and where Transformers refuses the config it must not."""
    try:
        tensors = saved(config)
    except SutureError:
        assert table._facts(entry_of(config["architectures"][0]), config) is None
        return False
    if table.lookup(config, tensors) is None:
        return False
    assert_same(config, tensors)
    return True


@pytest.mark.parametrize("name", CLASSES)
def test_drawn_configs(name):
    rng = random.Random(name)
    assert sum(agrees(drawn(name, rng)) for _ in range(6)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_many_drawn_configs(name):
    rng = random.Random(f"many {name}")
    assert sum(agrees(drawn(name, rng)) for _ in range(60)) > 20


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**32) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted({*LLAMA, *table._table()["fields"], "layers", "foo"})), VALUES)
def test_a_config_with_anything_in_it(key, value):
    config = {**TINY, key: value}
    if table.lookup(config, saved(TINY)) is not None:
        assert_same(config, saved(TINY))


# -------------------------------------------------------------------------------------------- where it says nothing


def test_a_tensor_that_is_missing_more_renamed_or_of_another_shape():
    config = {**TINY, "tie_word_embeddings": False}
    tensors = saved(config)
    assert table.lookup(config, tensors) is not None
    norm = tensors["model.norm.weight"]
    without = {n: t for n, t in tensors.items() if n != "model.norm.weight"}
    for other in (
        without,
        {**without, "model.final_norm.weight": norm},
        {**tensors, "model.extra.weight": norm},
        {**tensors, "model.layers.2.input_layernorm.weight": norm},
        {**tensors, "model.norm.weight": dataclasses.replace(norm, shape=(7,))},
        {**tensors, "norm.weight": norm},  # a second tensor for the same parameter
        {n: t for n, t in tensors.items() if n != "lm_head.weight"},
        {},
    ):
        assert table.lookup(config, other) is None


def test_a_tied_head_may_be_left_out_and_its_embedding_not():
    tensors = saved(TINY)
    assert_same(TINY, {n: t for n, t in tensors.items() if n != "lm_head.weight"})
    both = own(TINY)
    assert_same(TINY, both)
    assert table.lookup(TINY, {n: t for n, t in both.items() if n != "model.embed_tokens.weight"}) is None


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "gpt2", "pythia-1b", "bloom-560m"])
def test_names_without_the_prefix_of_the_base_model(name):
    config = {**REAL[name], **dict.fromkeys({"num_hidden_layers", "n_layer"} & REAL[name].keys(), 2)}
    tensors = own(config)
    prefix = entry_of(config["architectures"][0])["prefix"]
    assert prefix
    without = {n.removeprefix(prefix): t for n, t in tensors.items()}
    half = {n.removeprefix(prefix) if i % 2 else n: t for i, (n, t) in enumerate(tensors.items())}
    for names in (without, half):
        assert_same(config, {n: dataclasses.replace(t, name=n) for n, t in names.items()})


@pytest.mark.parametrize("name", ["Mixtral-8x7B", "Qwen3-30B-A3B", "OLMoE-1B-7B", "Qwen1.5-MoE-A2.7B"])
def test_an_expert_that_is_missing_more_or_written_otherwise(name):
    config = {**REAL[name], "num_hidden_layers": 2}
    tensors = saved(config)
    assert_same(config, tensors)
    pieces = sorted(n for n in tensors if ".experts." in n)
    last = tensors[pieces[0]]
    without = {n: t for n, t in tensors.items() if n != pieces[0]}
    assert table.lookup(config, without) is None
    for number in ("999", "00", "-1", "x", "", "٣", "9" * 5000):
        moved = pieces[0].replace(".experts.0.", f".experts.{number}.")
        assert table.lookup(config, {**without, moved: last}) is None
        assert table.lookup(config, {**tensors, moved: last}) is None
    count = next(k for k in entry_of(config["architectures"][0])["sizes"] if k.endswith("experts"))
    assert table._facts(entry_of(config["architectures"][0]), {**config, count: 100_001}) is None
    fused = {n: t for n, t in own(config).items() if n.endswith("experts.gate_up_proj")}
    assert fused
    assert table.lookup(config, {**tensors, **fused}) is None
    assert table.lookup(config, {**tensors, pieces[0]: dataclasses.replace(last, shape=last.shape[::-1])}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"foo": 1},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"per_layer_config": {}},
        {"text_config": {}},
        {"model_type": "mistral"},
        {"model_type": None},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["NoSuchClass"]},
        {"architectures": []},
        {"architectures": None},
        {"hidden_size": "2048"},
        {"hidden_size": 2048.0},
        {"hidden_size": True},
        {"num_attention_heads": 30},
        {"head_dim": 63},
        {"head_dim": -64},
        {"num_hidden_layers": 10**6},
        {"tie_word_embeddings": "yes"},
        {"tie_word_embeddings": None},
        {"hidden_act": "xielu"},
        {"pad_token_id": 200},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 0}},
        {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
        {"task_specific_params": {"tie_word_embeddings": True}},
        {"task_specific_params": {"layers": 10**6}},
        {"task_specific_params": {"x": {"__float__": "NaN"}}},
        {"n_ctx": -1},
        {"task_specific_params": {"x": {"num_labels": 100_001}}},
    ],
    ids=str,
)
def test_an_odd_config(change):
    tensors = saved(TINY)
    assert table.lookup(TINY, tensors) is not None
    assert table.lookup({**TINY, **change}, tensors) is None


def test_what_the_class_takes_from_its_defaults():
    config = {k: v for k, v in TINY.items() if k not in ("head_dim", "num_key_value_heads", "tie_word_embeddings")}
    assert_same(config, saved(config))
    assert_same({**config, "num_key_value_heads": None}, saved(config))


@pytest.fixture
def installed(monkeypatch):
    """Says that another version of Transformers is installed."""

    def set_to(version):
        monkeypatch.setattr("importlib.metadata.version", lambda package: version)
        table._is_installed.cache_clear()

    yield set_to
    monkeypatch.undo()
    table._is_installed.cache_clear()


@pytest.mark.parametrize(
    ("version", "answers"),
    [("5.23.0", True), ("5.24.1", True), ("5.23.1.dev0", True), ("5.22.9", False), ("4.99.0", False), ("6.0.0", False)],
)
def test_other_versions_of_transformers(version, answers, installed):
    installed(version)
    assert (table.lookup(TINY, saved(TINY)) is not None) == answers


def test_a_class_that_was_changed(installed, monkeypatch):
    installed("5.23.0")
    monkeypatch.setattr(table, "source_hash", lambda file: "0" * 16)
    assert table.lookup(TINY, saved(TINY)) is None


# ----------------------------------------------------------------------------------------------------- the generator


def test_the_table_is_of_the_installed_transformers():
    whole = table._table()
    assert whole["transformers"] == meta.version(), "make table writes it anew"
    assert [s.model for s in make_table.SUBJECTS] == CLASSES
    assert json.loads(make_table.text(whole)) == whole
    assert make_table.TABLE.read_text() == make_table.text(whole) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BloomForCausalLM", "LlamaForCausalLM", "MixtralForCausalLM"])
def test_the_generator_makes_the_table_again(name):
    subject = next(s for s in make_table.SUBJECTS if s.model == name)
    with make_table.quick():
        assert json.loads(json.dumps(make_table.entry(subject))) == entry_of(name)


# --------------------------------------------------------------------------------------------------- the first command


def write(folder, config_name, config, weights_name, shapes):
    """A folder with a config and random weights."""
    rng = torch.Generator().manual_seed(0)
    folder.mkdir()
    (folder / config_name).write_text(json.dumps(config))
    tensors = {n: 0.02 * torch.randn(s, generator=rng) for n, s in shapes.items()}
    save_file(tensors, folder / weights_name, {"format": "pt"})
    return str(folder)


def test_the_first_command_imports_neither_torch_nor_transformers(tmp_path):
    config = {**TINY, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    base = write(
        tmp_path / "b", "config.json", config, "model.safetensors", {n: t.shape for n, t in saved(config).items()}
    )
    lora = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"], "task_type": "CAUSAL_LM"}
    start, factors = "base_model.model.model.layers", {"lora_A": (2, 32), "lora_B": (48, 2)}
    shapes = {f"{start}.{i}.mlp.up_proj.{n}.weight": s for i in range(2) for n, s in factors.items()}
    adapter = write(tmp_path / "a", "adapter_config.json", lora, "adapter_model.safetensors", shapes)
    code = (
        "import sys\n"
        "from suture.cli.app import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print(sorted({'torch', 'transformers', 'peft'} & sys.modules.keys()))\n"
    )
    environment = {**os.environ, "SUTURE_CACHE": str(tmp_path / "cache")}
    for command in (["check"], ["plan"], ["merge", "-o", str(tmp_path / "out")], ["verify", str(tmp_path / "out")]):
        name, *rest = command
        whole = [sys.executable, "-c", code, name, base, adapter, *rest]
        done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1:] == ["[]"], f"{command}: {done.stdout}{done.stderr}"
    assert not (tmp_path / "cache").exists()
