"""Models whose class Transformers does not know are described by their headers."""

from __future__ import annotations

import pytest

from arch.loading import shapes
from suture.arch import describe
from suture.values import Part

REMOTE = {"architectures": ["OwnForCausalLM"], "model_type": "own", "auto_map": {"AutoModel": "own.Own"}}
EMBED, HEAD, Q = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.q.weight"
TENSORS = {EMBED: (8, 4), Q: (4, 4), "model.norm.weight": (4,), "model.conv.weight": (4, 1, 3)}


def described(config, tensors):
    return describe({**REMOTE, **config}, shapes(**tensors), cache=False)


def test_params_are_the_tensors():
    arch = described({}, TENSORS)
    assert (arch.model_class, arch.source) == ("OwnForCausalLM", "headers")
    assert {n: p.shape for n, p in arch.params.items()} == TENSORS
    assert [arch.params[n].kind for n in TENSORS] == ["Embedding", "Unknown", "Other", "Unknown"]
    assert set(arch.parts) == {Part(n, n) for n in TENSORS}
    assert (arch.input_embedding, arch.output_embedding) == ("model.embed_tokens", None)
    assert not arch.ties


@pytest.mark.parametrize("name", ["transformer.wte.weight", "m.word_embeddings.weight", "tok_embeddings.weight"])
def test_embeddings_are_known_by_name(name):
    arch = described({}, {name: (8, 4), "transformer.output_layer.weight": (8, 4)})
    assert arch.params[name].kind == "Embedding"
    assert arch.input_embedding == name.removesuffix(".weight")


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        ({"tie_word_embeddings": True}, (("tie_word_embeddings",),)),
        ({"text_config": {"tie_word_embeddings": True}}, (("text_config", "tie_word_embeddings"),)),
    ],
)
def test_a_tie_that_the_config_and_the_names_agree_on(config, flags):
    for tensors in (TENSORS, {**TENSORS, HEAD: (8, 4)}):
        arch = described(config, tensors)
        assert [t.members for t in arch.ties] == [(EMBED, HEAD)]
        assert not arch.ties[0].separable
        assert "not known to Transformers" in arch.ties[0].why
        assert arch.tie_flags == flags


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({"tie_word_embeddings": False}, TENSORS),
        ({}, TENSORS),
        ({"tie_word_embeddings": True}, {"a.weight": (4, 4)}),
        ({"tie_word_embeddings": True}, {"a.wte.weight": (8, 4), "b.wte.weight": (8, 4)}),
    ],
)
def test_no_tie_is_guessed(config, tensors):
    arch = described(config, tensors)
    assert arch.ties == ()
    assert arch.tie_flags == ()
