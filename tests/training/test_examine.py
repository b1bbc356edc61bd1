"""A model in a notebook: what `suture.check(model)` finds beyond the audit, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
import zoo
from live_cases import found
from peft import LoraConfig, get_peft_model
from tiny import make_model, trained, wrapped
from transformers import AutoModelForImageClassification, ViTConfig, get_linear_schedule_with_warmup

import suture
from suture.errors import UsageError


def optimizer_of(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def step(model, optimizer):
    ids = torch.arange(3, 20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def test_a_fresh_model_that_will_train_is_fine():
    model = wrapped()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    told = suture.check(model, optimizer=optimizer_of(model))
    assert {f.code for f in told} == {"L911"}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "nothing is changed"
    assert all(p.grad is None for p in model.parameters())


def test_values_that_are_not_finite():
    model = trained(wrapped())
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_A" in n)[0, 0] = float("nan")
    (finding,) = found(model, "N501")
    assert "1 module" in finding.found
    assert not found(trained(wrapped()), "N501")


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_factors_that_no_step_has_moved(rate):
    """The schedule was zero in every step: the optimiser has a state, and nothing happened."""
    model = wrapped()
    optimizer = optimizer_of(model)
    for group in optimizer.param_groups:
        group["initial_lr"], group["lr"] = 1e-3, 0.0
    for _ in range(2):
        step(model, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = rate
    (finding,) = found(model, "N502", optimizer=optimizer)
    assert "still zero after steps" in finding.found


def test_the_first_step_of_a_warm_up_moves_nothing_and_need_not():
    model = wrapped()
    optimizer = optimizer_of(model)
    schedule = get_linear_schedule_with_warmup(optimizer, 4, 10)
    for n_steps in range(1, 4):
        step(model, optimizer)
        assert not found(model, "N502", optimizer=optimizer), n_steps
        schedule.step()
        assert not found(model, "N502", optimizer=optimizer), n_steps
        assert any(p.any() for n, p in model.named_parameters() if "lora_B" in n) == (n_steps > 1)


def test_an_optimiser_that_does_not_count_its_steps():
    for scheduled in (False, True):
        model = wrapped()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
        if scheduled:
            get_linear_schedule_with_warmup(optimizer, 4, 10)
        step(model, optimizer)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.mul_("lora_B" not in name)
        assert bool(found(model, "N502", optimizer=optimizer)) != scheduled


def test_rates_of_zero_are_told_once():
    model = wrapped()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    for _ in range(2):
        step(model, optimizer)
    assert {f.code for f in suture.check(model, optimizer=optimizer)} == {"L907", "L911"}


def test_factors_that_steps_have_moved_and_factors_before_the_first():
    model = wrapped()
    optimizer = optimizer_of(model)
    assert not found(model, "N502", optimizer=optimizer)
    step(model, optimizer)
    assert not found(model, "N502", optimizer=optimizer)


def test_a_module_in_both_lists():
    model = wrapped(target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"])
    assert "lm_head" in found(model, "M309")[0].found
    assert not found(wrapped(modules_to_save=["lm_head"]), "M309")


def test_a_base_that_trains_at_both_names_of_one_tensor():
    model = wrapped()
    model.get_base_model().lm_head.weight.requires_grad_(True)
    (finding,) = found(model, "L905")
    assert finding.found.startswith("1 tensors of the base train")


@pytest.mark.parametrize(
    ("targets", "saved"), [(["self_attn.q_proj", "v_proj"], ["q_proj"]), (r".*(q_proj|lm_head)", ["lm_head"])]
)
def test_modules_in_both_lists_are_told_however_they_are_named(targets, saved):
    assert found(wrapped(target_modules=targets, modules_to_save=saved), "M309")


@pytest.mark.parametrize(
    "targets", [["q_proj", "lm_head"], r".*\.(q_proj|embed_tokens)", ["q_proj", "model.embed_tokens"]]
)
@pytest.mark.filterwarnings("ignore")
def test_tied_ends_are_told_however_they_are_named(targets):
    """PEFT warns of bare names alone."""
    (finding,) = found(wrapped(target_modules=targets), "T401")
    assert finding.severity == "info"
    assert not found(wrapped(make_model(tie=False), target_modules=targets), "T401")


def test_a_model_that_does_not_take_tokens_needs_a_batch():
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
                       patch_size=4, num_labels=3)  # fmt: skip
    model = get_peft_model(
        AutoModelForImageClassification.from_config(config), LoraConfig(r=2, target_modules="all-linear")
    )
    (told,) = found(model, "L908")
    assert told.severity == "info"
    assert "no backward pass was made: ViTForImageClassification gives no loss" in told.found
    batch = {"pixel_values": torch.rand(2, 3, 8, 8), "labels": torch.tensor([0, 2])}
    assert {f.code for f in suture.check(model, batch=batch)} == {"L911"}
    with pytest.raises(UsageError, match="gives no loss"):
        suture.check(model, batch={"nothing": 1})


LABELS = {"vit": [1, 0, 2, 6], "videomae": [1, 0, 2, 6], "wav2vec2": [[3, 4], [5, 6]]}


@pytest.mark.parametrize("name", LABELS)
def test_a_model_of_images_films_or_sounds_whose_base_is_on_the_disk(base_of, name):
    """It has no rows of tokens, in memory or in its files."""
    family = zoo.FAMILIES[name]
    base = zoo.load(family, base_of(name))
    batch = {**zoo.inputs(family, base), "labels": torch.tensor(LABELS[name])}
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    assert {(f.code, f.severity) for f in suture.check(model)} == {("L908", "info"), ("L911", "info")}
    assert {f.code for f in suture.check(model, batch=batch)} == {"L911"}


def test_what_is_no_model_with_an_adapter():
    with pytest.raises(UsageError, match="is no PeftModel"):
        suture.check(make_model())
