"""The audit is silent on healthy models of every kind, and tells each defect that training would pass over."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_live import CASES, ENDS, EXPERTS
from tiny import TARGETS, make_model, trained, wrapped
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig

import suture
from suture.errors import AuditFailed, UsageError

pytestmark = pytest.mark.usefixtures("quiet_torch")


def adamw(model, lr=1e-3):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)


def told(audit):
    return [f"{d.group}: {d.found}" for d in audit.differences]


def config(model):
    return model.peft_config["default"]


# ------------------------------------------------------------------------------------------------------------ healthy


@pytest.mark.parametrize("case", CASES)
def test_a_healthy_model_has_no_differences_and_peft_counts_the_same(case):
    of_model, of_lora = CASES[case]
    model = wrapped(make_model(**of_model), **of_lora)
    found = suture.audit(model, adamw(model))
    assert found.ok, told(found)
    assert found.probed
    assert (found.n_trainable, found.n_total) == model.get_nb_trainable_parameters()
    assert sum(row.n_params for row in found.rows) == found.n_trainable


def test_rows_say_what_trains_in_which_dtype_at_which_rate():
    model = wrapped(make_model(tie=False), modules_to_save=ENDS, use_rslora=True, rank_pattern={"v_proj": 2})
    fast = [p for name, p in model.named_parameters() if "lora_B" in name]
    slow = [p for name, p in model.named_parameters() if p.requires_grad and "lora_B" not in name]
    optimizer = torch.optim.AdamW([{"params": fast, "lr": 1e-2}, {"params": slow, "lr": 1e-3}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert schedule.get_last_lr() == [0.0, 0.0]  # a warm-up begins at zero; what counts is the peak
    found = suture.audit(model, optimizer)
    assert found.ok, told(found)
    rows = {row.group: row for row in found.rows}
    assert rows["LoRA"].lrs == (1e-3, 1e-2)
    assert rows["head"].lrs == rows["embeddings"].lrs == (1e-3,)
    assert rows["head"].n_params == 98 * 32
    assert {row.dtypes for row in found.rows} == {("F32",)}
    assert found.targets == {"q_proj": 2, "v_proj": 2, "down_proj": 2}
    assert found.percent == pytest.approx(100 * found.n_trainable / found.n_total)


LLAMA_8B = LlamaConfig(
    hidden_size=4096,
    num_hidden_layers=32,
    vocab_size=128256,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_the_counts_of_an_8b_model_with_and_without_its_embeddings():
    of_lora = {"r": 32, "target_modules": SEVEN, "task_type": "CAUSAL_LM"}
    with torch.device("meta"):
        model = wrapped(AutoModelForCausalLM.from_config(LLAMA_8B), **of_lora, modules_to_save=ENDS)
        whole = suture.audit(model)
        model.add_adapter("second", LoraConfig(**of_lora))
    assert (whole.n_trainable, whole.n_total) == (1_134_559_232, 9_164_820_480) == model_counts(whole)
    assert f"{whole.percent:.2f}" == "12.38"
    assert whole.ok
    assert not whole.probed
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name
    found = suture.audit(model)
    assert (found.n_trainable, found.n_total) == model.get_nb_trainable_parameters()
    assert found.n_trainable == 167_772_160
    assert f"{found.percent:.2f}" == "1.81"
    assert told(found) == [
        "embeddings: embed_tokens and lm_head are frozen: 1,050,673,152 parameters that the adapter holds would not "
        "train",
        "LoRA: a second adapter (second) trains beside 'default': 83,886,080 parameters that count twice",
    ]


def model_counts(audit):
    """The same counts, from the shapes alone."""
    n_lora = 32 * sum(4096 + n for n in (4096, 1024, 1024, 4096, 14336, 14336, 14336)) * 32
    n_ends = 2 * 128256 * 4096
    n_layers = 32 * (2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336 + 2 * 4096) + 4096
    return n_lora + n_ends, n_lora + 2 * n_ends + n_layers


# ------------------------------------------------------------------------------------------------------------ defects


def test_an_adapter_loaded_for_inference(tmp_path):
    wrapped(modules_to_save=["input_layernorm"]).save_pretrained(tmp_path)
    found = suture.audit(PeftModel.from_pretrained(make_model(), tmp_path))
    assert told(found) == [
        "LoRA: LoRA of 6 modules (12 tensors) is frozen: 1,664 parameters that the adapter holds would not train",
        "norms and others: input_layernorm (2 modules) are frozen: 64 parameters that the adapter holds would not "
        "train",
    ]
    assert "is_trainable=True" in found.differences[0].do
    assert found.n_trainable == 0
    assert suture.audit(PeftModel.from_pretrained(make_model(), tmp_path, is_trainable=True)).ok


def test_wrapped_twice():
    model = wrapped()
    twice = get_peft_model(model, config(model))
    assert told(suture.audit(twice)) == [
        "LoRA: the model is wrapped twice by get_peft_model: the keys of its file would fit no base"
    ]


def test_wrapped_again_under_another_name():
    model = wrapped()
    again = get_peft_model(model.base_model.model, LoraConfig(r=8, target_modules=["q_proj"]), adapter_name="two")
    (found,) = told(suture.audit(again))
    assert found == "LoRA: a second adapter (default) trains beside 'two': 1,664 parameters that count twice"


def test_norms_of_the_base_that_train():
    model = wrapped()
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.requires_grad = True
    (found,) = suture.audit(model).differences
    assert (found.group, found.n_params, len(found.names)) == ("base", 4 * 32, 4)


def test_an_optimiser_from_before_the_last_wrap():
    model = wrapped()
    optimizer = adamw(model)
    model = wrapped(model.unload())
    assert told(suture.audit(model, optimizer)) == [
        "LoRA: LoRA of 6 modules (12 tensors) is not in the optimiser: 1,664 parameters that would never move",
        "optimiser: the optimiser holds 12 tensors that are not in the model: 1,664 parameters",
    ]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters:UserWarning")
def test_a_parameter_twice_or_missing_in_the_optimiser():
    model = wrapped()
    parameters = [p for p in model.parameters() if p.requires_grad]
    twice = torch.optim.SGD([*parameters, parameters[0]], lr=0.1)
    assert told(suture.audit(model, twice)) == [
        "LoRA: LoRA of 1 module (1 tensor) is more than once in the optimiser: 128 parameters that would move too far"
    ]
    missing = torch.optim.SGD(parameters[1:], lr=0.1)
    assert told(suture.audit(model, missing)) == [
        "LoRA: LoRA of 1 module (1 tensor) is not in the optimiser: 128 parameters that would never move"
    ]


def test_a_learning_rate_of_zero():
    model = wrapped()
    (found,) = suture.audit(model, adamw(model, lr=0.0)).differences
    assert (found.n_params, "a learning rate of zero" in found.found) == (1664, True)
    assert "learning rate" in found.do


def test_a_module_named_to_be_saved_and_to_get_lora():
    model = wrapped(make_model(tie=False), target_modules=[*TARGETS, "lm_head"], modules_to_save=["lm_head"])
    head = [name for name, p in model.named_parameters() if p.requires_grad and "lm_head" in name]
    assert head == ["base_model.model.lm_head.modules_to_save.default.weight"]  # what PEFT makes of it
    (found,) = suture.audit(model).differences
    assert found.found.startswith("lm_head: named in modules_to_save and in target_modules; PEFT trains it in full")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_factors_share_memory_in_float32_and_are_apart_in_bf16(dtype):
    model = wrapped(
        make_model().to(dtype), target_modules=[*TARGETS, "embed_tokens", "lm_head"], ensure_weight_tying=True
    )
    found = suture.audit(model)
    step_of(model)
    held = {name: p for name, p in model.named_parameters() if "embed_tokens.lora" in name or "lm_head.lora" in name}
    one, other = (next(p for name, p in held.items() if kind in name) for kind in ("embedding_A", "lm_head.lora_B"))
    assert torch.equal(one, other.T) == found.ok == (dtype == torch.float32)
    if dtype == torch.float32:
        assert ["views of one memory" in note for note in found.ties] == [True]
    else:
        assert [d.group for d in found.differences] == ["embeddings"]
        assert "meant to train as one tensor (ensure_weight_tying), but are apart" in found.differences[0].found


def step_of(model):
    optimizer = adamw(model)
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_saved_ends_that_are_meant_to_be_one_and_are_not():
    model = wrapped(modules_to_save=ENDS)
    config(model).ensure_weight_tying = True
    (found,) = suture.audit(model).differences
    assert "are apart" in found.found


CHANGES = {
    "lora_alpha": (
        64,
        "6 modules scale their update by another factor than the adapter's config says: 2 instead of 16",
    ),
    "use_rslora": (
        True,
        "6 modules scale their update by another factor than the adapter's config says: 2 instead of 4",
    ),
    "alpha_pattern": ({"v_proj": 4}, "2 modules scale their update by another factor"),
    "target_modules": ({"q_proj", "v_proj"}, "LoRA of 2 modules (4 tensors) is in the model, but not promised"),
    "modules_to_save": (["embed_tokens"], "embed_tokens is promised by the adapter's config, but not in the model"),
    "use_dora": (True, "LoRA of 6 modules (6 tensors) is promised by the adapter's config, but not in the model"),
    "r": (8, "LoRA of 6 modules (12 tensors) is of another shape than the adapter's config and the base give"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_config_that_changed_after_the_injection(field):
    model = wrapped()
    value, words = CHANGES[field]
    setattr(config(model), field, value)
    found = told(suture.audit(model))
    assert any(words in text for text in found), found


@pytest.mark.parametrize("of_lora", [{"target_parameters": EXPERTS}, {"rank_pattern": {"q_proj": 2}, "use_dora": True}])
def test_scales_of_experts_and_patterns(of_lora):
    model = wrapped(make_model(kind="moe"), **{**of_lora, "target_modules": ["q_proj"]})
    assert suture.audit(model).ok
    config(model).lora_alpha = 9
    (found,) = suture.audit(model).differences
    assert "another factor" in found.found


def test_ends_that_train_apart_are_told_but_are_no_difference():
    for of_lora in (
        {"target_modules": ["q_proj", "model.embed_tokens"]},
        {"target_modules": r".*(q_proj|lm_head)"},
        {"modules_to_save": ["lm_head"]},
    ):
        found = suture.audit(wrapped(**of_lora))
        assert found.ok
        (note,) = found.ties
        assert note.startswith("model.embed_tokens and lm_head are one tensor in the base; ")
        assert "will train apart" in note
    for of_lora in (
        {},
        {"trainable_token_indices": [3]},
        {"modules_to_save": ENDS, "ensure_weight_tying": True},
    ):
        assert not suture.audit(wrapped(**of_lora)).notes
    assert not suture.audit(wrapped(make_model(tie=False), modules_to_save=ENDS)).notes


def test_the_error_lists_every_difference():
    model = wrapped()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad][2:], lr=0.1)
    config(model).lora_alpha = 64
    error = AuditFailed(suture.audit(model, optimizer))
    assert "2 differences" in str(error)
    assert "not in the optimiser" in str(error)
    assert "another factor" in str(error)


# -------------------------------------------------------------------------------------------------------- side effects


class Normed(torch.nn.Module):
    """A layer whose forward pass changes a buffer and draws random numbers of all three kinds."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.norm = inner, torch.nn.BatchNorm1d(32)

    def forward(self, x):
        x = x + 0 * (random.random() + np.random.rand() + torch.rand(1))
        return self.norm(self.inner(x).transpose(1, 2)).transpose(1, 2)


def state_of(model):
    values = {name: t.detach().clone() for name, t in model.state_dict().items()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    facts = {name: (p.requires_grad, p.data_ptr(), id(p.grad)) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    numbers = (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate())
    return values, gradients, facts, modes, numbers


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_changed(training):
    base = make_model()
    base.model.layers[0].self_attn.o_proj = Normed(base.model.layers[0].self_attn.o_proj)
    model = wrapped(base, lora_dropout=0.5).train(training)
    model.base_model.model.model.norm.train(not training)
    model.base_model.model.model.norm.weight.requires_grad = True
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    before = state_of(model)
    assert sum(g is not None for g in before[1].values()) > 6
    with torch.no_grad():
        assert suture.audit(model, adamw(model)).probed
        assert not torch.is_grad_enabled()
    after = state_of(model)
    assert after[2:] == before[2:]
    for old, new in zip(before[:2], after[:2], strict=True):
        assert old.keys() == new.keys()
        assert all(a is b or torch.equal(a, b) for a, b in zip(old.values(), new.values(), strict=True))


def test_nothing_is_changed_when_the_probe_fails():
    model = trained(wrapped())
    layer = model.base_model.model.model.layers[1].self_attn.q_proj

    def broken(*_, **__):
        raise ValueError("broken kernel")

    layer.forward = broken
    before = state_of(model)
    with pytest.raises(UsageError, match="broken kernel"):
        suture.audit(model)
    after = state_of(model)
    assert after[1:] == before[1:]
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values(), strict=True))
    assert suture.audit(model, gradients=False).ok


def test_a_layer_that_the_forward_pass_goes_around():
    model = wrapped()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.forward = lambda x: functional.linear(x, layer.weight)  # as fused kernels do
    (found,) = suture.audit(model).differences
    assert Counter(found.names) == Counter(
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{factor}.weight" for factor in "AB"
    )
    assert "without a gradient" in found.found
