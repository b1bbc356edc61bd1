"""The probe finds what a loss does not reach, with the batch that it is given or with random tokens."""

from __future__ import annotations

import pytest
import torch
import zoo
from peft import LoraConfig, get_peft_model
from tiny import VOCAB, make_model, wrapped
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    ViTConfig,
    ViTForImageClassification,
)

import suture
from suture.errors import UsageError
from suture.training.live import look
from suture.training.probe import BY_TEXT, N_TOKENS, is_beside_text, probe, random_batch

pytestmark = pytest.mark.usefixtures("quiet_torch")

LAYER = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "moe"])
def test_everything_is_reached_from_the_start_though_b_is_zero(kind):
    model = wrapped(make_model(kind=kind), target_modules="all-linear", use_dora=kind == "llama")
    assert not any(p.any() for name, p in model.named_parameters() if "lora_B" in name)
    assert probe(look(model)) == {}


def test_every_expert_is_reached():
    of_lora = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    assert probe(look(wrapped(make_model(kind="moe"), **of_lora))) == {}


def test_new_tokens_are_in_the_random_batch():
    live = look(wrapped(trainable_token_indices=[7, 95]))
    assert {7, 95} <= set(random_batch(live)["input_ids"].flatten().tolist())
    assert random_batch(live)["input_ids"].shape == (1, N_TOKENS)
    assert probe(live) == {}


def test_a_batch_that_misses_tokens_gets_a_second_chance():
    live = look(wrapped(make_model(tie=False), trainable_token_indices=[7]))
    ids = torch.full((1, 8), 20)
    assert probe(live, {"input_ids": ids, "labels": ids}) == {}


def test_what_no_batch_reaches_is_told():
    model = wrapped()
    attention = model.base_model.model.model.layers[1].self_attn
    attention.q_proj.forward = attention.q_proj.base_layer.forward
    ids = torch.arange(8)[None]
    expected = {LAYER.format(1, "A"): "none", LAYER.format(1, "B"): "none"}
    assert probe(look(model), {"input_ids": ids, "labels": ids}) == expected
    assert probe(look(model)) == expected


def test_a_gradient_that_is_not_finite_is_told():
    model = wrapped()
    with torch.no_grad():
        model.base_model.model.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
    found = probe(look(model))
    assert found[LAYER.format(0, "A")] == "not finite"
    (difference,) = suture.audit(model).differences
    assert "not finite" in difference.found


def test_checkpointing_without_input_gradients_cuts_everything_off():
    base = make_model()
    base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    model = wrapped(base).train()
    assert probe(look(model)) == {}  # PEFT has put a hook on the embeddings
    base.get_input_embeddings()._forward_hooks.clear()
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        found = suture.audit(model)
    assert {d.n_params for d in found.differences} == {found.n_trainable}
    assert "checkpointing without input gradients" in found.differences[0].do


def test_nothing_trains_then_nothing_is_probed():
    model = wrapped()
    model.requires_grad_(False)
    assert probe(look(model)) == {}


def test_positions_are_not_exceeded():
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=24, vocab_size=VOCAB)
    model = wrapped(AutoModelForCausalLM.from_config(config), target_modules=["c_attn"])
    assert random_batch(look(model))["input_ids"].shape == (1, 24)
    assert probe(look(model)) == {}


def test_a_batch_that_the_model_does_not_take_gives_way_to_random_tokens():
    assert probe(look(wrapped()), {"chosen_input_ids": torch.arange(8)[None]}) == {}


def test_models_of_other_inputs_need_a_batch():
    vit = ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=8, patch_size=4
    )
    model = get_peft_model(
        ViTForImageClassification(vit), LoraConfig(target_modules="all-linear", exclude_modules=["classifier"])
    )
    with pytest.raises(UsageError, match=r"Pass batch="):
        suture.audit(model)
    batch = {"pixel_values": torch.rand(2, 3, 8, 8), "labels": torch.tensor([0, 1])}
    assert suture.audit(model, batch=batch).ok


def test_a_classifier_with_a_batch_of_its_own():
    config = BertConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=50)
    model = BertForSequenceClassification(config)
    model = get_peft_model(model, LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS"))
    found = suture.audit(model, batch={"input_ids": torch.arange(12).reshape(2, 6), "labels": torch.tensor([0, 1])})
    assert found.ok, found.differences
    assert {row.group for row in found.rows} == {"LoRA", "norms and others", "biases"}  # the classifier trains in full
    assert (found.n_trainable, found.n_total) == model.get_nb_trainable_parameters()


# --------------------------------------------------------------------------------------------------------- other towers


def with_tower(name):
    """A model that reads text and pictures, LoRA on all linear layers; text and pictures for it; text alone."""
    family = zoo.FAMILIES[name]
    base = family.model_class(family.make_config())
    zoo.draw(base, family, seed=0)
    both = dict(zoo.inputs(family, base))
    ids = torch.arange(3, 40)[None]
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    return model, {**both, "labels": both["input_ids"]}, {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("name", ["gemma3-image", "qwen3-vl"])
def test_a_tower_that_random_tokens_cannot_enter_is_no_difference(name):
    model, both, text = with_tower(name)
    missed = probe(look(model))
    assert set(missed.values()) == {BY_TEXT}
    assert all(".vision" in key or ".visual" in key for key in missed)
    found = suture.audit(model)
    assert found.ok
    (note,) = found.notes
    assert note.startswith("12 modules (model.vis")
    assert "outside of the text model: not reached by text alone" in note
    assert "pass batch=" in note
    assert not [f for f in suture.check(model) if f.severity == "error"]

    with_batch = suture.audit(model, batch=both)
    assert with_batch.ok
    assert not with_batch.notes

    (difference,) = suture.audit(model, batch=text).differences
    assert "12 modules (24 tensors) is without a gradient" in difference.found


def test_a_batch_that_is_refused_shows_nothing_of_another_tower():
    model, *_ = with_tower("qwen3-vl")
    assert set(probe(look(model), {"chosen_input_ids": torch.arange(8)[None]}).values()) == {BY_TEXT}


def test_what_text_misses_in_the_text_model_stays_a_difference_beside_a_tower():
    model, *_ = with_tower("gemma3-image")
    attention = model.base_model.model.model.language_model.layers[1].self_attn
    attention.q_proj.forward = attention.q_proj.base_layer.forward
    (difference,) = suture.audit(model).differences
    assert "1 module (2 tensors)" in difference.found
    assert all(".language_model.layers.1.self_attn.q_proj." in name for name in difference.names)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.visual.merger.linear_fc1", True),
        ("model.projector.linear", True),
        ("model.language_model.layers.0.vision_expert.q_proj", True),
        ("model.language_model.layers.0.self_attn.q_proj", False),
        ("model.language_model.embed_tokens", False),
        ("lm_head", False),
    ],
)
def test_where_the_text_model_ends(module, expected):
    """The tied head lies outside of its path, and what joins the towers has no name of its own."""
    model, *_ = with_tower("qwen3-vl")
    assert is_beside_text(look(model), f"base_model.model.{module}.lora_A.weight") == expected
    assert is_beside_text(look(model), f"base_model.model.{module}.weight") == expected


# ---------------------------------------------------------------------------------- optimisers in the backward pass


def test_an_optimiser_in_the_backward_pass_makes_no_step():
    model = wrapped()
    optimizers = {p: torch.optim.AdamW([p], lr=0.1) for p in model.parameters() if p.requires_grad}
    steps = []

    def hook(p):
        steps.append(p)
        optimizers[p].step()
        p.grad = None

    handles = [p.register_post_accumulate_grad_hook(hook) for p in optimizers]
    hooks = [p._post_accumulate_grad_hooks for p in optimizers]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert {f.code for f in suture.check(model)} == {"L911"}, "the gradients are seen, though the hook drops them"
    assert not steps
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p._post_accumulate_grad_hooks is old for p, old in zip(optimizers, hooks, strict=True))

    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert len(steps) == len(optimizers), "the hooks are back"
    for handle in handles:
        handle.remove()
    model(input_ids=ids, labels=ids).loss.backward()
    assert len(steps) == len(optimizers), "and can be removed by their handles"
