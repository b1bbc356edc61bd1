"""Which names are one tensor, and what becomes of a model whose flags are turned off: by logits, not by belief."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
import zoo

from arch.loading import headers, read, values, write
from suture.arch import describe
from suture.arch.reads import reads_of

TIED = [f.name for f in zoo.FAMILIES.values() if f.tied]
FLAG = "tie_word_embeddings"
BART = (
    "model.shared.weight",
    "lm_head.weight",
    "model.decoder.embed_tokens.weight",
    "model.encoder.embed_tokens.weight",
)
GROUPS = {
    "llama-tied": [("model.embed_tokens.weight", "lm_head.weight")],
    "gpt2": [("transformer.wte.weight", "lm_head.weight")],
    "whisper": [("model.decoder.embed_tokens.weight", "proj_out.weight")],
    "bart": [BART],
    "bert": [
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ],
    "gemma3-image": [("model.language_model.embed_tokens.weight", "lm_head.weight")],
    "t5": [("shared.weight", "decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "lm_head.weight")],
    "llama": [],
    "mixtral": [],
    "vit": [],
}


def turned_off(config, arch):
    off = copy.deepcopy(config)
    for *parents, key in arch.tie_flags:
        place = off
        for parent in parents:
            place = place[parent]
        place[key] = False
    return off


def spelled_out(arch, tensors, model):
    """What an untied model has on disk: a tensor for every member of every tied group."""
    stored = {p.param for p in arch.parts}
    missing = {n for tie in arch.ties for n in tie.members} - stored
    return {**tensors, **{n: values(model)[n].clone() for n in missing}}


@pytest.mark.parametrize("name", GROUPS)
def test_groups(name, base_of):
    config, tensors = read(base_of(name))
    arch = describe(config, headers(tensors), cache=False)
    assert sorted(t.members for t in arch.ties) == sorted(GROUPS[name])
    assert bool(arch.tie_flags) == bool(GROUPS[name])


@pytest.mark.parametrize("name", TIED)
def test_untied_by_hand_computes_the_same(name, base_of, tmp_path):
    """And what is called not separable does not, or keeps its members together."""
    family = zoo.FAMILIES[name]
    config, tensors = read(base_of(name))
    model = zoo.load(family, base_of(name))
    arch = describe(config, headers(tensors), cache=False)
    folder = write(tmp_path / "untied", turned_off(config, arch), spelled_out(arch, tensors, model))
    untied, info = family.model_class.from_pretrained(folder, output_loading_info=True)
    feed = zoo.inputs(family, model)
    same = torch.equal(zoo.logits(untied.eval(), feed), zoo.logits(model, feed))
    apart = all(len({id(untied.get_parameter(n)) for n in t.members}) == len(t.members) for t in arch.ties)
    assert {t.separable for t in arch.ties} == {family.separable}
    assert (same and apart and not info["missing_keys"] and not info["unexpected_keys"]) == family.separable


@pytest.mark.parametrize("name", [n for n in TIED if zoo.FAMILIES[n].separable])
def test_untied_members_move_alone(name, base_of, tmp_path):
    """A value of its own survives the loader in every member."""
    family = zoo.FAMILIES[name]
    config, tensors = read(base_of(name))
    arch = describe(config, headers(tensors), cache=False)
    stored = {p.param: p.tensor for p in arch.parts}
    apart = spelled_out(arch, tensors, zoo.load(family, base_of(name)))
    wanted = {}
    for i, member in enumerate(sorted(n for tie in arch.ties for n in tie.members)):
        place = stored.get(member, member)
        wanted[member] = apart[place] = apart[place] + i + 1
    model = zoo.load(family, write(tmp_path / "untied", turned_off(config, arch), apart))
    assert all(torch.equal(model.get_parameter(n), v) for n, v in wanted.items())


def tiny(model_type, **settings):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 32}
    return {"model_type": model_type, **sizes, **settings}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (tiny("t5"), "T5Config sets"),
        (tiny("t5", tie_word_embeddings=False), "T5Config sets"),
        (tiny("mt5"), "MT5Config sets"),
        (tiny("umt5"), "UMT5Config sets"),
        (tiny("longt5"), "LongT5Config sets"),
        (tiny("udop"), "UdopConfig sets"),
        (tiny("switch_transformers"), "SwitchTransformersForConditionalGeneration.forward depends on"),
        (tiny("nllb-moe", encoder_layers=1, decoder_layers=1), ""),
        ({"model_type": "marian", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}, ""),
        ({"model_type": "cohere", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}, ""),
        ({"model_type": "jetmoe", "num_hidden_layers": 1, FLAG: True}, ""),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_what_the_tie_flag_does_besides_tying(config, why):
    (tie, *_) = describe(config, {}, cache=False).ties
    assert tie.separable == (not why)
    assert tie.why.startswith(why)


def test_a_function_that_reads_the_flag_is_found_in_the_class_that_reads_it():
    config = transformers.SwitchTransformersConfig(**tiny("switch_transformers"))
    with torch.device("meta"):
        whole = transformers.SwitchTransformersForConditionalGeneration(config)
        encoder = transformers.SwitchTransformersEncoderModel(config)
    assert reads_of(whole, {FLAG}) == f"SwitchTransformersForConditionalGeneration.forward depends on config.{FLAG}"
    assert reads_of(encoder, {FLAG}) == ""


def test_a_value_derived_from_the_flag_counts_as_the_flag():
    """T5 keeps it as scale_decoder_outputs."""
    config = transformers.T5Config(**tiny("t5"))
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(config)
    assert reads_of(model, {"scale_decoder_outputs"}).startswith("T5ForConditionalGeneration.forward")


VL = {"model_type": "qwen3_vl", "text_config": {"num_hidden_layers": 1}, "vision_config": {"depth": 1}}


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        ({"model_type": "llama", "num_hidden_layers": 1, FLAG: True}, {(FLAG,)}),
        ({"model_type": "gpt2", "n_layer": 1}, {(FLAG,)}),
        ({**VL, FLAG: True}, {(FLAG,)}),
        ({**VL, FLAG: True, "text_config": {"num_hidden_layers": 1, FLAG: True}}, {(FLAG,), ("text_config", FLAG)}),
        ({**VL, FLAG: True, "text_config": {"num_hidden_layers": 1, FLAG: False}}, {(FLAG,)}),
        ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 1}}, {(FLAG,), ("text_config", FLAG)}),
        ({"model_type": "gpt2", "n_layer": 1, "llm_config": {FLAG: True}}, {(FLAG,), ("llm_config", FLAG)}),
        ({"model_type": "lfm2", "num_hidden_layers": 1, "tie_embedding": True}, {(FLAG,), ("tie_embedding",)}),
    ],
    ids=["llama", "gpt2 default", "top only", "both", "text says no", "text by default", "elsewhere", "other name"],
)
def test_flags_that_must_turn_false(config, flags):
    arch = describe(config, {}, cache=False)
    assert set(arch.tie_flags) == flags
    assert all(t.separable for t in arch.ties)
    assert describe(turned_off(config, arch), {}, cache=False).ties == ()


def test_a_flag_in_an_outer_config_reaches_the_inner_model():
    """A config with neither flag nor nested config in it still unties when the flag is written where it works."""
    config = {
        "model_type": "qwen2_vl",
        "vision_config": {"depth": 1},
        "text_config": {"num_hidden_layers": 1, FLAG: True},
    }
    arch = describe(config, {}, cache=False)
    assert set(arch.tie_flags) == {(FLAG,), ("text_config", FLAG)}
    assert [t.members for t in arch.ties] == [("model.language_model.embed_tokens.weight", "lm_head.weight")]
    assert describe(turned_off(config, arch), {}, cache=False).ties == ()


def test_untied_under_either_generation_of_names(base_of, tmp_path):
    """The missing member is added by the name it has in memory; the tensors beside it are named as before or after."""
    family = zoo.FAMILIES["gemma3-image"]
    config, before = read(base_of(family.name))
    model = zoo.load(family, base_of(family.name))
    after = {p.param: before[p.tensor] for p in describe(config, headers(before), cache=False).parts}
    assert not before.keys() & after.keys()
    feed = zoo.inputs(family, model)
    for name, tensors in (("before", before), ("after", after)):
        arch = describe(config, headers(tensors), cache=False)
        folder = write(tmp_path / name, turned_off(config, arch), spelled_out(arch, tensors, model))
        assert torch.equal(zoo.logits(zoo.load(family, folder), feed), zoo.logits(model, feed))


class Twins(transformers.LlamaForCausalLM):
    """Two layers with one MLP."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[1].mlp = self.model.layers[0].mlp


class Scratch(transformers.LlamaForCausalLM):
    """Two names for a buffer that is never saved."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("here", torch.zeros(2), persistent=False)
        self.register_buffer("there", self.here, persistent=False)


class Two(transformers.LlamaForCausalLM):
    """Another module when untied."""

    def __init__(self, config):
        super().__init__(config)
        if not config.tie_word_embeddings:
            self.adapter = torch.nn.Linear(2, 2)


class Stubborn(transformers.LlamaForCausalLM):
    """No model at all when untied."""

    def __init__(self, config):
        if not config.tie_word_embeddings:
            raise ValueError("must be tied")
        super().__init__(config)


def whys(monkeypatch, cls):
    """Reasons by the last names of a group's first member, for a tied Llama of this class."""
    monkeypatch.setattr("transformers.LlamaForCausalLM", cls)
    arch = describe({**zoo.FAMILIES["llama"].settings, "model_type": "llama", FLAG: True}, {}, cache=False)
    return {t.members[0].split(".")[-2]: t.why for t in arch.ties}


def test_shared_modules_stay_shared(monkeypatch):
    shared = dict.fromkeys(
        ("down_proj", "gate_proj", "up_proj"), "Twins keeps them as one tensor with every tie flag off"
    )
    assert whys(monkeypatch, Twins) == {"embed_tokens": "", **shared}


def test_what_is_never_saved_is_not_tied(monkeypatch):
    assert whys(monkeypatch, Scratch) == {"embed_tokens": ""}


def test_other_parameters_when_untied(monkeypatch):
    why = "with the tie flags off the class has other parameters (adapter.bias)"
    assert whys(monkeypatch, Two) == {"embed_tokens": why}


def test_a_class_that_cannot_be_untied(monkeypatch):
    assert whys(monkeypatch, Stubborn)["embed_tokens"].endswith("ValueError: must be tied")


def test_a_member_that_the_loader_takes_for_something_else(monkeypatch):
    monkeypatch.setattr("suture.arch.meta.routes", lambda model, names: ((), {}, tuple(names)))
    why = "the loader does not read model.embed_tokens.weight from a tensor of that name"
    assert whys(monkeypatch, transformers.LlamaForCausalLM) == {"embed_tokens": why}


def test_a_class_without_source(monkeypatch):
    def none(_):
        raise OSError("could not get source code")

    monkeypatch.setattr("inspect.getsource", none)
    assert "cannot be read" in whys(monkeypatch, transformers.LlamaForCausalLM)["embed_tokens"]
