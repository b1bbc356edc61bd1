"""A model folder is read as it is: healthy ones are clean, and nothing in a broken one stops the reading."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from model_cases import INDEX, WEIGHTS, copied, edit, found, reweigh
from peft import LoraConfig, get_peft_model
from rule_cases import llama, random
from tiny import make_base, make_model, make_tokenizer, trained, wrapped
from zoo import FAMILIES, load

import suture
from suture.errors import FormatError, InputError
from suture.model_folder import read_model_folder

pytestmark = pytest.mark.usefixtures("quiet_torch")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_transformers_saves_is_clean(name, base_of):
    assert not found(base_of(name), deep=True)
    assert not read_model_folder(base_of(name)).missing


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "moe"])
def test_a_model_with_its_tokenizer_is_clean(tie, kind, tmp_path):
    folder = make_base(tmp_path / "base", tie=tie, kind=kind)
    model = read_model_folder(folder, deep=True)
    assert not found(folder, deep=True)
    assert len(model.vocabulary) == 98
    assert model.template == make_tokenizer().chat_template
    assert model.weights == (WEIGHTS,)
    assert set(model.not_finite.values()) == {(0, 0)}


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_a_merge_by_peft_of_layers_that_are_not_tied_is_clean(targets, tmp_path):
    merged = trained(wrapped(make_model(), target_modules=targets)).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert not found(tmp_path / "merged", deep=True)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3-moe", "mixtral", "whisper", "gemma3-image", "qwen3-vl"])
def test_what_suture_merges_is_clean(name, base_of, tmp_path):
    """With LoRA on the head, so that tied models are untied."""
    family, base = FAMILIES[name], base_of(name)
    model = trained(get_peft_model(load(family, base), LoraConfig(r=2, target_modules=[family.head])))
    model.save_pretrained(tmp_path / "adapter")
    suture.merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert not found(tmp_path / "merged", deep=True)


def test_bfloat16_with_norms_in_float32_is_clean(tmp_path):
    model = make_model(tie=False).to(torch.bfloat16)
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.to(torch.float32)
    model.save_pretrained(tmp_path)
    assert not found(tmp_path, deep=True)


def test_no_torch_where_the_class_is_known_already(tmp_path):
    folder = llama(tmp_path / "base", tied=True)
    read_model_folder(folder)
    code = f"import sys; from suture.model_folder import *; read_model_folder({str(folder)!r})"
    code += "; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("files", "words"),
    [({}, "no config.json"), ({"config.json": "{}"}, "no weights"), ({"adapter_config.json": "{}"}, "adapter")],
)
def test_what_is_no_model(files, words, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=words):
        read_model_folder(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError):
        read_model_folder(tmp_path / "elsewhere")


def test_nothing_in_a_broken_folder_stops_the_reading(tmp_path):
    folder = llama(tmp_path / "base")
    (folder / "config.json").write_text("{")
    (folder / INDEX).write_text("[]")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"\0" * 20)
    (folder / "model-00002-of-00002.safetensors").symlink_to(tmp_path / "nothing")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    model = read_model_folder(folder, deep=True)
    assert model.unreadable.keys() == {
        *("config.json", INDEX, "tokenizer.json", "chat_template.jinja"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    }
    assert (model.arch, model.config, model.weights) == (None, {}, (WEIGHTS,))
    assert found(folder)


@pytest.mark.parametrize(
    "text", ['{"weight_map": 3}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x"}}', "{}"]
)
def test_an_index_that_is_none(base_of, tmp_path, text):
    folder = copied(base_of("llama"), tmp_path / "model")
    (folder / INDEX).write_text(text)
    assert found(folder)


def test_pickled_weights_are_not_opened(tmp_path):
    folder = llama(tmp_path / "base")
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    model = read_model_folder(folder)
    assert (model.headers, model.weights) == ({}, ())


def test_flags_at_every_level(base_of, tmp_path):
    flags = read_model_folder(base_of("gemma3-image")).flags
    assert flags == {("tie_word_embeddings",): True, ("text_config", "tie_word_embeddings"): True}
    silent = copied(base_of("gemma3-image"), tmp_path / "model")
    edit(silent / "config.json", lambda c: (c.pop("tie_word_embeddings"), c["text_config"].pop("tie_word_embeddings")))
    assert read_model_folder(silent).flags == flags


def test_two_stored_ends_are_compared(tmp_path):
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    folder = llama(tmp_path / "base", tied=True, tensors={head: random(32, 16, seed=9)})
    assert read_model_folder(folder).same == {(embedding, head): False}
    reweigh(folder, lambda t: t.update({head: t[embedding].copy()}))
    assert read_model_folder(folder).same == {(embedding, head): True}
    reweigh(folder, lambda t: t[head].__setitem__((17, 3), 0))
    assert read_model_folder(folder).same == {(embedding, head): False}


def test_values_that_are_no_numbers_are_counted(tmp_path):
    bad = random(32, 16)
    bad[0, :3], bad[1, 1] = np.nan, np.inf
    model = read_model_folder(llama(tmp_path / "base", tensors={"lm_head.weight": bad}), deep=True)
    assert model.not_finite["lm_head.weight"] == (3, 1)
    assert read_model_folder(tmp_path / "base").not_finite is None


@pytest.mark.parametrize("name", ["chat_template.jinja", "config.json", "tokenizer.json"])
def test_a_file_without_end_is_told_and_not_read(name, tmp_path):
    base = make_base(tmp_path / "base")
    os.truncate(base / name, 1 << 40)  # a sparse file
    assert "1099511627776 bytes" in read_model_folder(base).unreadable[name]
