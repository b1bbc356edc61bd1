"""The keys of a live adapter are those that PEFT itself saves, for every kind of tensor that an adapter can hold."""

from __future__ import annotations

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model, get_peft_model_state_dict
from tiny import TARGETS, make_model, wrapped

from suture.errors import UsageError
from suture.training.live import key_of, look

pytestmark = [
    pytest.mark.usefixtures("quiet_torch"),
]

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ENDS = ["embed_tokens", "lm_head"]
UNTIED = {"tie": False}
CASES = {
    "lora": ({}, {}),
    "dora": ({}, {"use_dora": True}),
    "lora_bias": ({}, {"lora_bias": True}),
    "bias-lora_only": ({"kind": "gpt2"}, {"target_modules": ["c_attn"], "bias": "lora_only"}),
    "bias-all": ({"kind": "gpt2"}, {"target_modules": ["c_attn"], "bias": "all"}),
    "saved-tied": ({}, {"modules_to_save": ENDS}),
    "saved-one-end": ({}, {"modules_to_save": ["embed_tokens"]}),
    "saved-together": ({}, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "saved-untied": (UNTIED, {"modules_to_save": ENDS}),
    "saved-norms": ({}, {"modules_to_save": ["input_layernorm"]}),
    "saved-whole-block": ({}, {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
    "tokens-tied": ({}, {"trainable_token_indices": [3, 5]}),
    "tokens-untied": (UNTIED, {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]}}),
    "experts": ({"kind": "moe"}, {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "experts-and-router": ({"kind": "moe"}, {"target_parameters": [*EXPERTS, "mlp.gate.weight"]}),
    "embedding-lora": (UNTIED, {"target_modules": [*TARGETS, *ENDS]}),
    "embedding-dora": (UNTIED, {"target_modules": [*TARGETS, "embed_tokens"], "use_dora": True}),
    "embedding-together": ({}, {"target_modules": [*TARGETS, "embed_tokens"], "ensure_weight_tying": True}),
    "conv1d": ({"kind": "gpt2"}, {"target_modules": ["c_attn", "c_fc"]}),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("name", ["default", "other"])
@pytest.mark.parametrize("compiled", [False, True])
def test_keys_and_tensors_are_those_that_peft_saves(case, name, compiled):
    of_model, of_lora = case
    model = wrapped(make_model(**of_model), adapter_name=name, **of_lora)
    live = look(torch.compile(model) if compiled else model)
    saved = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    # A shared parameter has several keys here, and PEFT saves one of them or all.
    assert live.unique().keys() <= saved.keys() <= live.held.keys()
    assert {live.held[key].data_ptr() for key in saved} == {p.data_ptr() for p in live.held.values()}
    assert all(live.held[key].data_ptr() == tensor.data_ptr() for key, tensor in saved.items())
    assert not live.strangers
    assert not live.others


def test_only_shared_tokens_have_a_key_that_peft_does_not_save():
    live = look(wrapped(trainable_token_indices=[3, 5]))
    saved = get_peft_model_state_dict(live.model, save_embedding_layers=False)
    assert live.held.keys() - saved.keys() == {"base_model.model.lm_head.token_adapter.trainable_tokens_delta"}


def test_another_adapter_is_neither_held_nor_the_bases():
    model = wrapped(modules_to_save=["mlp"], target_modules=["q_proj"])
    before = look(model).held.keys()
    model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    live = look(model)
    assert live.adapter == "second"
    assert live.held.keys() == before
    assert {name.replace(".default", "") for name in live.others} == {
        name.replace(".second", "") for name, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_inside_the_path_are_left_out(wrapper):
    name = f"base_model.model.model.{wrapper}.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert key_of(name, "default", {}) == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_a_module_named_like_the_adapter_is_the_bases():
    assert key_of("base_model.model.model.default.weight", "default", {}) is None


def test_groups():
    live = look(wrapped(make_model(tie=False), modules_to_save=[*ENDS, "input_layernorm"], lora_bias=True))
    groups = {}
    for key in live.held:
        groups[live.group(key)] = groups.get(live.group(key), 0) + 1
    assert groups == {"LoRA": 18, "embeddings": 1, "head": 1, "norms and others": 2}


def test_a_wrapper_of_a_trainer_is_looked_through():
    model = wrapped()
    assert look(torch.nn.DataParallel(model)).model is model


def test_what_is_no_lora_adapter_is_refused():
    with pytest.raises(UsageError, match="LlamaForCausalLM is no PeftModel"):
        look(make_model())
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    with pytest.raises(UsageError, match="the adapter's method is IA3"):
        look(get_peft_model(make_model(), config))


def test_several_active_adapters_are_refused():
    model = wrapped()
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UsageError, match="2 adapters are active: default, second"):
        look(model)


def test_a_model_wrapped_twice_is_seen():
    model = wrapped()
    assert not look(model).is_wrapped_twice
    twice = get_peft_model(model, model.peft_config["default"])
    assert isinstance(twice.get_base_model(), PeftModel)
    assert look(twice).is_wrapped_twice
    assert look(twice).arch.input_embedding == "model.embed_tokens"
