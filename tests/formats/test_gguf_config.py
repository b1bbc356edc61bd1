"""What the keys of a GGUF file say of the model: the config that they make, and those that are refused."""

import json

import numpy as np
import pytest

pytest.importorskip("gguf")
import gguf
from gguf_cases import N_TOKENS, make_model, write_gguf

from suture.errors import FormatError
from suture.formats.gguf import read_gguf

pytestmark = pytest.mark.usefixtures("quiet_torch")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "in" / "tiny.gguf"


def test_keys_that_are_not_understood_are_told(path, caplog):
    read_gguf(write_gguf(path, make_model("llama"), "llama", keys={"logit_scale": 0.5}))
    assert "not taken into account: logit_scale" in caplog.text


def config_of(path, architecture, keys=None, extra=None):
    model = make_model(architecture, tie=architecture.startswith("gemma"))
    return read_gguf(write_gguf(path, model, architecture, keys=keys, extra=extra)).config


def llama3_factors(factor, dim, theta):
    """As convert_hf_to_gguf.py makes them."""
    found = []
    for k in range(0, dim, 2):
        wave = 2 * np.pi * theta ** (k / dim)
        if wave < 8192 / 4:
            found.append(1.0)
        elif wave > 8192:
            found.append(factor)
        else:
            smooth = (8192 / wave - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def test_llama_3s_factors_become_its_rope_parameters(path):
    extra = {"rope_freqs.weight": llama3_factors(32.0, 32, 500000.0)}
    found = config_of(path, "llama", {"rope.freq_base": 500000.0}, extra)["rope_parameters"]
    assert found == {
        **{"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        **{"original_max_position_embeddings": 8192, "rope_theta": 500000.0},
    }


def test_factors_of_one_change_nothing(path):
    found = config_of(path, "llama", extra={"rope_freqs.weight": np.ones(16, np.float32)})
    assert found["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    "factors",
    [np.linspace(1, 8, 16), np.ones(8), np.full(16, np.nan), np.full(16, 2.0)],
    ids=["line", "few", "nan", "2"],
)
def test_other_factors_are_refused(path, factors):
    factors = factors.astype(np.float32)
    if np.all(factors == 1):
        factors[0] = 2
    with pytest.raises(FormatError, match=r"rope_freqs\.weight"):
        config_of(path, "llama", extra={"rope_freqs.weight": factors})


def test_long_and_short_factors_become_longrope(path):
    long, short = np.linspace(1, 9, 16, dtype=np.float32), np.linspace(1, 2, 16, dtype=np.float32)
    extra = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    keys = {"rope.scaling.attn_factor": 1.19, "rope.scaling.original_context_length": 128}
    found = config_of(path, "phi3", keys, extra)
    assert found["rope_parameters"]["rope_type"] == "longrope"
    assert np.array_equal(np.float32(found["rope_parameters"]["long_factor"]), long)
    assert np.array_equal(np.float32(found["rope_parameters"]["short_factor"]), short)
    assert (found["original_max_position_embeddings"], found["max_position_embeddings"]) == (128, 256)


def test_half_a_head_that_turns_is_said_of_phi_4(path):
    found = config_of(path, "phi3", {"rope.dimension_count": 24, "attention.sliding_window": 0})
    assert (found["rope_parameters"]["partial_rotary_factor"], found["sliding_window"]) == (0.75, None)


@pytest.mark.parametrize(
    ("architecture", "keys", "expected"),
    [
        ("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ("llama", {"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ("llama", {"rope.scaling.type": "none"}, {"rope_type": "default"}),
        (
            "qwen2",
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_stretched_positions_are_said_in_the_config(path, architecture, keys, expected):
    assert config_of(path, architecture, keys)["rope_parameters"] == {**expected, "rope_theta": 10000.0}


def test_gemma_3s_global_layers_are_stretched(path):
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base": 1e6}
    found = config_of(path, "gemma3", {**keys, "rope.freq_base_swa": 10000.0})["rope_parameters"]
    assert found["full_attention"] == {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    assert found["sliding_attention"] == {"rope_type": "default", "rope_theta": 10000.0}


def test_numbers_are_the_shortest_that_mean_the_files_float32(path):
    found = config_of(path, "qwen2", {"attention.layer_norm_rms_epsilon": 1e-6})
    assert json.dumps(found["rms_norm_eps"]) == "1e-06"


REFUSED = {
    "no block_count": ({"block_count": None}, {}, "block_count is 'None'"),
    "too few layers": ({"block_count": 1}, {}, "block_count is 1, the tensors are of 2 layers"),
    "layers for ever": ({"block_count": 2_000_000_000}, {}, "block_count is 2000000000"),
    "no heads": ({"attention.head_count": 0}, {}, "no head of attention"),
    "heads a layer": ({"attention.head_count": [4, 4]}, {}, r"attention.head_count is '\[4, 4\]'"),
    "odd heads": ({"attention.head_count": 7}, {}, "Transformers makes no model|rows for|shape"),
    "kv heads": ({"attention.head_count_kv": 3}, {}, "Transformers makes no model|rows for|shape"),
    "text": ({"embedding_length": "wide"}, {}, "embedding_length is 'wide'"),
    "wide": ({"embedding_length": 2_000_000_000}, {}, "the shape|Transformers makes no model"),
    "inner": ({"feed_forward_length": 640}, {}, r"blk\.0\.ffn_gate\.weight.*the shape \[512, 256\]"),
    "heads of two sizes": ({"attention.key_length": 32, "attention.value_length": 64}, {}, "keys of '32' values"),
    "part of a head": ({"attention.key_length": 32, "rope.dimension_count": 16}, {}, "'16' of '32' values"),
    "rope": ({"rope.scaling.type": "magic"}, {}, "rope.scaling.type is 'magic'"),
    "yarn without a factor": ({"rope.scaling.type": "yarn"}, {}, "rope.scaling.type is 'yarn'"),
    "a factor of text": ({"rope.scaling.factor": "big"}, {}, "rope.scaling.factor is 'big'"),
    "biases": ({}, {"blk.0.attn_q.bias": np.zeros(256, np.float32)}, "no llama model of Transformers has"),
    "another layer": ({}, {"blk.2.attn_norm.weight": np.zeros(256, np.float32)}, "the tensors are of 3 layers"),
    "scales": ({}, {"blk.0.attn_q.scale": np.zeros(1, np.float32)}, "attn_q.scale.*no llama model"),
    "factors": ({}, {"rope_freqs.weight": np.zeros((4, 4), np.float32)}, r"rope_freqs.weight: F32 \[4, 4\]"),
    "integers": ({}, {"blk.0.attn_q.scale": np.zeros(4, np.int32)}, "attn_q.scale"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_keys_that_make_no_model_are_refused(path, case):
    keys, extra, match = REFUSED[case]
    write_gguf(path, make_model("llama"), "llama", keys=keys, extra=extra)
    with pytest.raises(FormatError, match=match) as error:
        read_gguf(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("architecture", ["falcon", "clip", "gpt2", "t5", "deepseek2", "llama4"])
def test_another_architecture_is_refused_and_those_that_are_read_are_named(path, architecture):
    writer = gguf.GGUFWriter(path.parent.mkdir() or path, architecture)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    with pytest.raises(FormatError, match=f"the architecture is '{architecture}'\n.*llama, qwen2, qwen2moe, qwen3"):
        read_gguf(path)


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_what_is_no_model_is_refused(path, monkeypatch, kind):
    monkeypatch.setattr(gguf.GGUFWriter, "add_name", lambda writer, _: writer.add_type(kind))
    write_gguf(path, make_model("llama"), "llama")
    with pytest.raises(FormatError, match=f"general.type is '{kind}'"):
        read_gguf(path)


def broken_tokens(**changes):
    def add(writer, _):
        facts = {"model": "gpt2", "tokens": [f"t{k}" for k in range(N_TOKENS)], "merges": [], "bos": 1, **changes}
        writer.add_tokenizer_model(facts["model"])
        writer.add_token_list(facts["tokens"])
        writer.add_token_merges(facts["merges"])
        writer.add_bos_token_id(facts["bos"])

    return add


def test_tokens_without_rows_are_refused(path, monkeypatch):
    import gguf_cases

    monkeypatch.setattr(gguf_cases, "add_vocabulary", broken_tokens(tokens=["a"] * (N_TOKENS + 1)))
    with pytest.raises(FormatError, match="261 tokens, and 260 rows"):
        read_gguf(write_gguf(path, make_model("llama"), "llama"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "magic"},
        {"bos": 100_000},
        {"merges": ["a b"]},
        {"merges": ["t1"]},
        {"tokens": [b"\xff\xff"] * N_TOKENS},
    ],
    ids=["model", "bos", "merges of no token", "a merge of one", "not UTF-8"],
)
def test_a_vocabulary_that_cannot_be_read_is_refused(path, monkeypatch, changes):
    import gguf_cases

    monkeypatch.setattr(gguf_cases, "add_vocabulary", broken_tokens(**changes))
    write_gguf(path, make_model("llama"), "llama")
    with pytest.raises(FormatError, match="Transformers makes no model of its keys"):
        read_gguf(path)
