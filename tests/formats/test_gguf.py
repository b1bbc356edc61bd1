"""GGUF files read as Hugging Face models: against the models they were made from, and against Transformers' loader."""

import json
import logging

import numpy as np
import pytest

pytest.importorskip("gguf")
import gguf
import torch
from gguf import GGMLQuantizationType as Type
from gguf_cases import CONFIGS, HEADS, KV_HEADS, N_TOKENS, converted, make_model, write_gguf
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from suture.errors import FormatError, InputError, MissingExtra
from suture.formats import TensorReader, fingerprint
from suture.formats.gguf import read_gguf

pytestmark = pytest.mark.usefixtures("quiet_torch")

ARCHITECTURES = [name for name in CONFIGS if name != "mistral"]
TYPES = {
    "blocks of 32": (Type.Q4_0, Type.Q5_1, Type.Q8_0, Type.Q4_1, Type.Q5_0, Type.IQ4_NL, Type.MXFP4, Type.NVFP4),
    "k": (Type.Q4_K, Type.Q6_K, Type.Q2_K, Type.Q3_K, Type.Q5_K, Type.TQ1_0, Type.TQ2_0),
    "iq": (Type.IQ2_XXS, Type.IQ2_XS, Type.IQ3_XXS, Type.IQ1_S, Type.IQ3_S, Type.IQ2_S, Type.IQ4_XS, Type.IQ1_M),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "in" / "tiny.gguf"


def values_of(checkpoint):
    with TensorReader.of(checkpoint) as reader:
        return {name: reader.array(info) for name, info in checkpoint.tensors.items()}


def bits(x):
    return x.view(f"u{x.dtype.itemsize}")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert (found[name].shape, found[name].dtype) == (x.shape, x.dtype), name
        assert np.array_equal(bits(found[name]), bits(x)), name


def saved(model, folder):
    """The tensors that `save_pretrained` writes of a model."""
    model.save_pretrained(folder, max_shard_size="100GB")
    return load_file(folder / "model.safetensors")


def loaded(path, checkpoint):
    """What Transformers makes of the file, in float32; its experts under the names of ordinary checkpoints."""
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        config=AutoConfig.from_pretrained(checkpoint.folder),
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tensors = {name: x.numpy() for name, x in model.state_dict().items() if name in checkpoint.tensors or "exp" in name}
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        x, stem = tensors.pop(name), name.rpartition(".")[0]
        halves = {"down": x} if "down" in name else dict(zip(("gate", "up"), np.split(x, 2, 1), strict=True))
        tensors |= {f"{stem}.{k}.{part}_proj.weight": y[k] for part, y in halves.items() for k in range(len(x))}
    return {name: np.ascontiguousarray(x) for name, x in tensors.items()}


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_an_unquantised_file_is_the_model_that_it_was_made_from(path, tmp_path, architecture, tie):
    if architecture.startswith("gemma") and not tie:
        pytest.skip("Gemma's head is always the embedding")
    model = make_model(architecture, tie=tie)
    checkpoint = read_gguf(write_gguf(path, model, architecture))
    assert_same(values_of(checkpoint), saved(model, tmp_path / "saved"))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    # Names of Transformers' own for what GGUF files do not say.
    free = {"_name_or_path", "unk_token_id", "head_dim"} if architecture == "qwen2moe" else {"unk_token_id"}
    assert {k: v for k, v in checkpoint.config.items() if k not in free} == {
        k: v for k, v in config.items() if k not in free
    }


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_quantised_file_is_what_transformers_dequantises(path, architecture, types):
    model = make_model(architecture, tie=architecture.startswith("gemma"))
    checkpoint = read_gguf(write_gguf(path, model, architecture, types=TYPES[types]))
    assert {info.dtype for info in checkpoint.tensors.values()} == {"F32"}
    assert_same(values_of(checkpoint), loaded(path, checkpoint))


@pytest.mark.parametrize(("kind", "dtype"), [(Type.F16, "float16"), (Type.BF16, "bfloat16")], ids=["F16", "BF16"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3moe"])
def test_a_file_of_16_bits_stays_one_where_nothing_is_lost(path, architecture, kind, dtype):
    model = make_model(architecture, tie=architecture == "gemma2")
    checkpoint = read_gguf(write_gguf(path, model, architecture, types=(kind,)))
    assert checkpoint.config["dtype"] == dtype
    assert {info.dtype for info in checkpoint.tensors.values()} == {kind.name}
    expected = {name: torch.from_numpy(x).to(getattr(torch, dtype)) for name, x in loaded(path, checkpoint).items()}
    storage = np.float16 if kind is Type.F16 else np.uint16
    found = {name: bits(x) for name, x in values_of(checkpoint).items()}
    assert_same(found, {name: x.view(torch.uint16).numpy() for name, x in expected.items()})
    assert {x.dtype for x in values_of(checkpoint).values()} == {np.dtype(storage)}


def test_a_file_of_16_bits_whose_norms_need_more_is_read_in_float32(path):
    model = make_model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = 1 / 3
    checkpoint = read_gguf(write_gguf(path, model, "llama", types=(Type.BF16,)))
    assert {info.dtype for info in checkpoint.tensors.values()} == {"F32"}
    assert values_of(checkpoint)["model.norm.weight"][3] == np.float32(1 / 3)


def test_two_types_of_16_bits_are_read_in_float32(path):
    checkpoint = read_gguf(write_gguf(path, make_model("llama"), "llama", types=(Type.BF16, Type.F16)))
    assert checkpoint.config["dtype"] == "float32"


def test_the_checkpoint_is_a_folder_with_the_file_in_it(path):
    checkpoint = read_gguf(write_gguf(path, make_model("llama"), "llama", types=(Type.Q8_0,)))
    assert checkpoint.folder.name == "tiny"
    assert [(s.name, s.n_bytes, dict(s.metadata)) for s in checkpoint.shards] == [
        ("tiny.gguf", path.stat().st_size, {})
    ]
    assert checkpoint.side_files == (
        *("chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    )
    assert checkpoint.config == json.loads((checkpoint.folder / "config.json").read_text())
    assert {info.file for info in checkpoint.tensors.values()} == {"model.safetensors"}
    assert not any(info.is_stored for info in checkpoint.tensors.values())
    parts = [part for packed in checkpoint.packed.values() for part in packed.parts.values()]
    assert [part.begin for part in parts] == sorted(part.begin for part in parts)
    assert len(checkpoint.stored) == len(parts) == len(checkpoint.tensors)
    assert checkpoint.quantization.words == "GGUF: 16 in Q8_0, 5 in F32"
    assert len(fingerprint(checkpoint)) == 64


def test_experts_are_slices_of_the_tensor_that_stacks_them(path):
    checkpoint = read_gguf(write_gguf(path, make_model("qwen3moe"), "qwen3moe", types=(Type.Q8_0,)))
    parts = [checkpoint.packed[f"model.layers.1.mlp.experts.{k}.up_proj.weight"].parts["data"] for k in range(4)]
    assert [part.name for part in parts] == [f"blk.1.ffn_up_exps.weight[{k}]" for k in range(4)]
    assert [part.begin for part in parts[1:]] == [part.end for part in parts[:-1]]


@pytest.mark.parametrize(
    ("architecture", "vocabulary"),
    [
        *[("llama", "gpt2"), ("llama", "llama"), ("qwen3", "gpt2"), ("qwen2moe", "gpt2"), ("phi3", "gpt2")],
        *[("phi3", "llama"), ("gemma2", "llama"), ("gemma3", "llama")],
    ],
)
def test_the_tokenizer_is_the_one_that_transformers_makes(path, tmp_path, architecture, vocabulary):
    model = make_model(architecture, tie=architecture.startswith("gemma"))
    checkpoint = read_gguf(write_gguf(path, model, architecture, vocabulary=vocabulary))
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(tmp_path / "saved")
    theirs = {file.name: file.read_text() for file in (tmp_path / "saved").iterdir()}
    found = {name: (checkpoint.folder / name).read_text() for name in theirs}
    # Tokens that the classes add by themselves, and that the model has no row for.
    ours, whole = json.loads(found.pop("tokenizer.json")), json.loads(theirs.pop("tokenizer.json"))
    assert [t["id"] for t in ours["added_tokens"]] == [t["id"] for t in whole["added_tokens"] if t["id"] < N_TOKENS]
    assert {**ours, "added_tokens": []} == {**whole, "added_tokens": []}
    assert found == theirs
    text = "<s>he said:  Ünï 12,345\n"
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (checkpoint.folder, tmp_path / "saved"))
    assert one(text).input_ids == other(text).input_ids


def test_a_split_that_transformers_does_not_know_is_told_each_time(path, monkeypatch, caplog):
    monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_pre", lambda w, _: w.add_string("tokenizer.ggml.pre", "smollm"))
    write_gguf(path, make_model("llama"), "llama")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "suture"):
            read_gguf(path)
        assert "does not know how 'smollm' splits text" in caplog.text


def test_a_file_without_a_vocabulary_has_no_tokenizer(path, caplog):
    checkpoint = read_gguf(write_gguf(path, make_model("llama"), "llama", vocabulary=""))
    assert checkpoint.side_files == ("config.json", "generation_config.json")
    assert "no tokenizer" in caplog.text


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_file_without_head_count_kv_has_as_many_as_heads(path, architecture):
    """Transformers forgets to put the rows of Llama's q and k back in that case, and gives Qwen2 32 heads."""
    config = CONFIGS[architecture](False)
    config.num_key_value_heads = HEADS
    model = make_model(architecture, config=config)
    checkpoint = read_gguf(write_gguf(path, model, architecture, keys={"attention.head_count_kv": None}))
    assert checkpoint.config["num_key_value_heads"] == HEADS
    found = values_of(checkpoint)
    assert np.array_equal(
        found["model.layers.0.self_attn.k_proj.weight"], model.model.layers[0].self_attn.k_proj.weight.detach()
    )


def test_parts_of_a_file_are_read_as_one(path, tmp_path):
    model = make_model("qwen2")
    write_gguf(path, model, "qwen2", types=(Type.Q8_0,), split=9)
    parts = sorted(path.parent.iterdir())
    assert [part.name for part in parts] == [f"tiny-0000{k}-of-00003.gguf" for k in (1, 2, 3)]
    whole = read_gguf(write_gguf(tmp_path / "whole" / "tiny.gguf", model, "qwen2", types=(Type.Q8_0,)))
    for part in parts:
        checkpoint = read_gguf(part)
        assert [shard.name for shard in checkpoint.shards] == [part.name for part in parts]
        assert checkpoint.folder.name == "tiny"
        assert_same(values_of(checkpoint), values_of(whole))


def test_a_part_that_is_missing_is_named(path):
    write_gguf(path, make_model("qwen2"), "qwen2", split=9)
    (path.parent / "tiny-00002-of-00003.gguf").unlink()
    with pytest.raises(InputError, match=r"parts are missing: 'tiny-00002-of-00003\.gguf'"):
        read_gguf(path.parent / "tiny-00001-of-00003.gguf")


def test_parts_in_the_wrong_order_are_refused(path):
    write_gguf(path, make_model("qwen2"), "qwen2", split=9)
    one, two = (path.parent / f"tiny-0000{k}-of-00003.gguf" for k in (1, 2))
    one.rename(path)
    two.rename(one)
    path.rename(two)
    with pytest.raises(FormatError, match=r"split\.no and split\.count are '\(1, 3\)'"):
        read_gguf(one)


def test_one_part_under_another_name_is_refused(path):
    write_gguf(path, make_model("qwen2"), "qwen2", split=9)
    (path.parent / "tiny-00001-of-00003.gguf").rename(path)
    with pytest.raises(FormatError, match=r"split\.count are '\(0, 3\)'"):
        read_gguf(path)


@pytest.mark.parametrize("change", ["missing", "renamed", "misshapen", "experts"])
def test_tensors_that_make_no_model_are_refused(path, monkeypatch, change):
    import gguf_cases

    architecture = "qwen3moe" if change == "experts" else "llama"
    tensors = converted(model := make_model(architecture), architecture)
    if change == "missing":
        tensors.pop("blk.1.ffn_up.weight")
    elif change == "renamed":
        tensors["blk.1.ffn_top.weight"] = tensors.pop("blk.1.ffn_up.weight")
    elif change == "misshapen":
        tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"].T.copy()
    else:
        tensors["blk.1.ffn_up_exps.weight"] = tensors["blk.1.ffn_up_exps.weight"][:3]
    monkeypatch.setattr(gguf_cases, "converted", lambda *_: tensors)
    match = {
        "misshapen": r"blk\.1\.ffn_up\.weight.*the shape",
        "experts": r"ffn_up_exps.weight.*the shape",
        "renamed": r"blk\.1\.ffn_top\.weight.*no llama model",
    }
    with pytest.raises(FormatError, match=match.get(change, r"1 tensors are missing: 'blk\.1\.ffn_up\.weight'")):
        read_gguf(write_gguf(path, model, architecture))


def test_types_that_cannot_be_decoded_are_refused(path, monkeypatch):
    write_gguf(path, make_model("llama"), "llama", types=(Type.Q8_0,))
    monkeypatch.setattr("suture.formats.gguf.weights.is_decodable", lambda kind: kind != "Q8_0")
    with pytest.raises(FormatError, match=r"Q8_0 values\n.*a type that the package gguf decodes"):
        read_gguf(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a regular file"):
        read_gguf(tmp_path)
    with pytest.raises(InputError, match="cannot be opened"):
        read_gguf(tmp_path / "none.gguf")


def test_without_the_package_it_is_named(path, monkeypatch):
    write_gguf(path, make_model("llama"), "llama")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtra, match="gguf is not installed"):
        read_gguf(path)


def test_kv_heads_are_used_for_k(path):
    checkpoint = read_gguf(write_gguf(path, make_model("llama"), "llama", types=(Type.Q4_0,)))
    settings = {name.split(".")[4]: p.settings for name, p in checkpoint.packed.items() if "self_attn" in name}
    assert settings["q_proj"] == {"type": "Q4_0", "permute": HEADS}
    assert settings["k_proj"] == {"type": "Q4_0", "permute": KV_HEADS}
    assert settings["v_proj"] == settings["o_proj"] == {"type": "Q4_0"}
