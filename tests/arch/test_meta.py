"""The model class of a config, what is read from it, and what happens when there is none."""

from __future__ import annotations

import warnings

import pytest
import transformers
import zoo

from arch.loading import read, shapes
from suture.arch import describe, meta
from suture.errors import FormatError, MissingExtra
from suture.values import Param

LLAMA = {**zoo.FAMILIES["llama"].settings, "model_type": "llama"}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({**LLAMA, "architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        (LLAMA, "LlamaForCausalLM"),
        ({**LLAMA, "architectures": []}, "LlamaForCausalLM"),
        ({**LLAMA, "architectures": ["MadeUpForCausalLM"]}, "LlamaForCausalLM"),
        ({"model_type": "t5"}, "T5ForConditionalGeneration"),
        ({"model_type": "whisper"}, "WhisperForConditionalGeneration"),
        ({"model_type": "vit"}, "ViTModel"),
        ({"model_type": "gemma3"}, "Gemma3ForConditionalGeneration"),
        ({"model_type": "qwen3_5"}, "Qwen3_5ForConditionalGeneration"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
    ],
)
def test_the_class_of_a_config(config, name):
    assert meta.find_class(config).__name__ == name


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "made_up"},
        {},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": ["pipeline"]},
        {"architectures": ["PreTrainedModel"]},
        {"architectures": ["models.llama"]},
        {"architectures": [{}], "model_type": []},
        {**LLAMA, "architectures": ["MyLlama"], "auto_map": {"AutoModelForCausalLM": "code.MyLlama"}},
    ],
)
def test_configs_without_a_class_of_transformers(config):
    assert meta.find_class(config) is None


def test_code_of_the_checkpoint_is_not_asked_for_when_transformers_has_the_class():
    config = {**LLAMA, "architectures": ["LlamaForCausalLM"], "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    assert describe(config, {}, cache=False).model_class == "LlamaForCausalLM"


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_kernels_that_are_not_installed_are_not_needed(key):
    assert describe({**LLAMA, key: "flash_attention_9"}, {}, cache=False) == describe(LLAMA, {}, cache=False)


def test_the_text_part_of_a_composite_config():
    text = {**zoo.FAMILIES["gemma3"].settings, "model_type": "gemma3_text"}
    config = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3", "text_config": text}
    arch = describe(config, {}, cache=False)
    assert arch.params["model.embed_tokens.weight"].shape == (zoo.VOCAB, 32)
    assert set(arch.tie_flags) == {("tie_word_embeddings",), ("text_config", "tie_word_embeddings")}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        (
            "llama",
            {
                "model.embed_tokens.weight": "Embedding",
                "model.layers.0.self_attn.q_proj.weight": "Linear",
                "model.layers.0.input_layernorm.weight": "Other",
                "lm_head.weight": "Linear",
            },
        ),
        ("gpt2", {"transformer.h.0.attn.c_attn.weight": "Conv1D", "transformer.h.0.attn.c_attn.bias": "Conv1D"}),
        ("falcon", {"transformer.h.0.mlp.dense_h_to_4h.weight": "Linear"}),
        ("mixtral", {"model.layers.0.mlp.experts.gate_up_proj": "Experts", "model.layers.0.mlp.gate.weight": "Other"}),
        ("gpt-oss", {"model.layers.0.mlp.experts.down_proj_bias": "Other"}),
        ("whisper", {"model.encoder.conv1.weight": "Conv1d"}),
        ("vit", {"vit.embeddings.patch_embeddings.projection.weight": "Conv2d"}),
        ("videomae", {"videomae.embeddings.patch_embeddings.projection.weight": "Conv3d"}),
        ("mamba2", {"backbone.layers.0.mixer.A_log": "Other", "backbone.layers.0.mixer.conv1d.weight": "Conv1d"}),
    ],
)
def test_kinds(name, kinds, base_of):
    config, _ = read(base_of(name))
    params = describe(config, {}, cache=False).params
    assert {n: params[n].kind for n in kinds} == kinds


def test_experts_say_which_way_they_are_stored(base_of):
    config, _ = read(base_of("gpt-oss"))
    oss = describe(config, {}, cache=False).params["model.layers.0.mlp.experts.gate_up_proj"]
    assert oss == Param("model.layers.0.mlp.experts.gate_up_proj", (4, 32, 96), "Experts", transposed=True)
    config, _ = read(base_of("mixtral"))
    assert not describe(config, {}, cache=False).params["model.layers.0.mlp.experts.gate_up_proj"].transposed


def test_params_are_in_order_of_declaration(base_of):
    config, _ = read(base_of("mixtral"))
    names = list(describe(config, {}, cache=False).params)
    assert names[0] == "model.embed_tokens.weight"
    assert names.index("model.layers.0.mlp.experts.gate_up_proj") < names.index("model.layers.0.mlp.experts.down_proj")
    assert names[-1] == "lm_head.weight"


def test_saved_buffers_are_params(base_of):
    config, _ = read(base_of("bart"))
    assert describe(config, {}, cache=False).params["final_logits_bias"] == Param("final_logits_bias", (1, 96), "Other")


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("llama", ("model.embed_tokens", "lm_head")),
        ("gpt-neox", ("gpt_neox.embed_in", "lm_head")),
        ("t5", ("shared", "lm_head")),
        ("gemma3-image", ("model.language_model.embed_tokens", "lm_head")),
        ("bert", ("bert.embeddings.word_embeddings", "cls.predictions.decoder")),
        ("vit", (None, None)),
        ("wav2vec2", (None, None)),
    ],
)
def test_the_ends_of_the_vocabulary(name, ends, base_of):
    config, _ = read(base_of(name))
    arch = describe(config, {}, cache=False)
    assert (arch.input_embedding, arch.output_embedding) == ends


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_act": "magic"}, "magic"),
        ({"vocab_size": -5}, "Llama"),
        ({"rope_parameters": {"rope_type": "made_up"}}, "made_up"),
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000"),
    ],
)
def test_a_config_that_transformers_rejects_is_a_format_error(change, found):
    with pytest.raises(FormatError, match=found) as error:
        describe({**LLAMA, **change}, {}, cache=False)
    assert error.value.where == "config.json"


def test_a_nested_count_is_checked_as_well():
    with pytest.raises(FormatError, match="num_hidden_layers"):
        describe({"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**9}}, {}, cache=False)


def test_a_build_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr(meta, "_MAX_MODULES", 100)
    with pytest.raises(FormatError, match="more than 100 modules"):
        describe({**LLAMA, "num_hidden_layers": 99_999}, {}, cache=False)


def test_reasons_are_safe_to_print(monkeypatch):
    def refuse(*_):
        raise ValueError("a \x1b[31mred\n  reason")

    monkeypatch.setattr(transformers.LlamaConfig, "from_dict", refuse)
    with pytest.raises(FormatError, match=r"ValueError: a \?\[31mred reason") as error:
        describe(LLAMA, {}, cache=False)
    assert error.value.found.isprintable()


def test_a_class_that_needs_another_package(monkeypatch):
    class Dummy:
        _backends = ("timm", "vision")

    monkeypatch.setattr("transformers.LlamaForCausalLM", Dummy)
    with pytest.raises(MissingExtra, match="timm, vision"):
        describe({**LLAMA, "architectures": ["LlamaForCausalLM"]}, {}, cache=False)


def test_numbers_that_json_cannot_spell(base_of):
    config, _ = read(base_of("mamba2"))
    assert config["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert describe(config, {}, cache=False).model_class == "Mamba2ForCausalLM"


def test_the_config_is_not_changed():
    config = {
        **LLAMA,
        "tie_word_embeddings": True,
        "auto_map": {"AutoConfig": "x"},
        "rope_parameters": {"rope_theta": 1e4},
    }
    before = repr(config)
    describe(config, shapes(**{"model.norm.weight": (32,)}), cache=False)
    assert repr(config) == before


def test_transformers_is_silenced_only_while_we_build():
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_info()
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            describe({**LLAMA, "eos_token_id": 10**6}, {}, cache=False)
            with pytest.raises(FormatError):
                describe({**LLAMA, "hidden_act": "magic"}, {}, cache=False)
        assert logging.get_verbosity() == transformers.logging.INFO
        assert not seen
    finally:
        logging.set_verbosity(level)


def test_the_build_leaves_no_hook_behind():
    from torch.nn.modules import module

    before = len(module._global_module_registration_hooks)
    describe(LLAMA, {}, cache=False)
    assert len(module._global_module_registration_hooks) == before
