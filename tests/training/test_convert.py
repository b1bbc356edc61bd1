"""Adapters carried over to another rank, scale or set of targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from zoo_adapters import perturb

from suture import targets
from suture.arch import describe
from suture.errors import UsageError
from suture.formats import read_checkpoint
from suture.training.convert import convert

FAMILY = zoo.FAMILIES["llama"]
LINEAR = ["q_proj", "v_proj", "down_proj"]
P = "base_model.model."
ADDED = "rows of A from the fresh initialisation, columns of B zero; the update is unchanged"
FOLDED = "folded into B (× {}, in float32); the update is unchanged"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return zoo.build(FAMILY, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def arch(base):
    checkpoint = read_checkpoint(base)
    return describe(checkpoint.config, checkpoint.tensors)


def peft_of(base, config, *, seed=0, trained=False, n_tokens=0):
    """A PEFT model with its embeddings copied into the file only where they are trained."""
    model = zoo.load(FAMILY, base)
    if n_tokens:
        torch.manual_seed(1)
        model.resize_token_embeddings(n_tokens, mean_resizing=False)
    torch.manual_seed(seed)
    live = get_peft_model(model, config).eval()
    if trained:
        perturb(live, seed=seed, std=0.1)
    return live


def state(live):
    found = get_peft_model_state_dict(live, save_embedding_layers=False)
    return {key: value.detach().numpy().copy() for key, value in found.items()}


def as_json(config):
    plain = config.to_dict()
    return {k: sorted(v) if isinstance(v, set) else v for k, v in plain.items()}


def carried(base, arch, old, new, **how):
    """Convert a trained adapter of one PEFT config to another; returns both live models and what was converted."""
    live = peft_of(base, old, trained=True, **how)
    other = peft_of(base, new, seed=7, **how)
    fresh = state(other)
    expected = {key: value.shape for key, value in fresh.items()}
    if not how:
        assert expected == dict(targets.expected(as_json(new), arch).tensors)
    got = convert(
        state(live), as_json(live.peft_config["default"]), as_json(other.peft_config["default"]), expected, fresh
    )
    assert list(got.tensors) == list(expected)
    assert {key: value.shape for key, value in got.tensors.items()} == expected
    assert {value.dtype for value in got.tensors.values()} == {np.dtype(np.float32)}
    found = set_peft_model_state_dict(other, {key: torch.from_numpy(v) for key, v in got.tensors.items()})
    assert not found.unexpected_keys
    return live, other, got


def logits_of(live):
    return zoo.logits(live, zoo.inputs(FAMILY, live))


def assert_same_function(live, other, base):
    reference = logits_of(live)
    assert float((reference - logits_of(zoo.load(FAMILY, base))).abs().max()) > 1e-2
    torch.testing.assert_close(logits_of(other), reference, rtol=0, atol=1e-6 * float(reference.abs().max()))


def lora(**settings):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LINEAR, **settings})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            lora(),
            lora(r=8, lora_alpha=16),
            [f"rank 4 → 8 in 6 modules: {ADDED}"],
        ),
        (
            lora(),
            lora(r=8),
            [f"rank 4 → 8 in 6 modules: {ADDED}", f"scale 2 → 1 in 6 modules: {FOLDED.format(2)}"],
        ),
        (lora(), lora(lora_alpha=24), [f"scale 2 → 6 in 6 modules: {FOLDED.format(0.333333)}"]),
        (
            lora(),
            lora(use_rslora=True),
            [f"scale 2 → 4 in 6 modules: {FOLDED.format(0.5)}"],
        ),
        (
            lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 4}),
            lora(rank_pattern={"q_proj": 3}),
            [
                f"rank 2 → 3 in 2 modules: {ADDED}",
                f"scale 4 → 2.66667 in 2 modules: {FOLDED.format(1.5)}",
                f"scale 1 → 2 in 2 modules: {FOLDED.format(0.5)}",
            ],
        ),
        (
            lora(),
            lora(target_modules=[*LINEAR, "o_proj"], modules_to_save=["lm_head"]),
            [
                "2 modules new to the run: a fresh start, so the function is unchanged",
                "1 tensor trained in full from now on: starting from the base's values",
            ],
        ),
        (
            lora(use_dora=True),
            lora(use_dora=True, r=6, lora_alpha=6),
            [f"rank 4 → 6 in 6 modules: {ADDED}", f"scale 2 → 1 in 6 modules: {FOLDED.format(2)}"],
        ),
        (
            lora(target_modules=["embed_tokens", "q_proj"]),
            lora(target_modules=["embed_tokens", "q_proj"], r=6, lora_alpha=12),
            [
                "rank 4 → 6 in 1 module: columns of B from the fresh initialisation, rows of A zero; "
                "the update is unchanged",
                f"rank 4 → 6 in 2 modules: {ADDED}",
            ],
        ),
        (
            lora(init_lora_weights="orthogonal"),
            lora(init_lora_weights="orthogonal", r=8, lora_alpha=16),
            [f"rank 4 → 8 in 6 modules: {ADDED}"],
        ),
        (
            lora(trainable_token_indices=[3, 5]),
            lora(trainable_token_indices=[9, 5, 3]),
            ["1 token row new to the run: starting from the base's values"],
        ),
    ],
)
def test_the_function_stays_the_same(base, arch, old, new, said):
    live, other, got = carried(base, arch, old, new)
    assert sorted(got.statements) == sorted(said)
    assert_same_function(live, other, base)


@pytest.mark.parametrize("targets_", [["q_proj", "v_proj"], ["embed_tokens"]])
def test_every_direction_that_was_added_learns(base, arch, targets_):
    """Were both factors zero in a direction, its gradients would be, for ever."""
    _, other, _ = carried(base, arch, lora(target_modules=targets_), lora(target_modules=targets_, r=8))
    logits = other(**zoo.inputs(FAMILY, other)).logits
    logits.log_softmax(-1)[..., 0].sum().backward()
    factors = {n: p.grad for n, p in other.named_parameters() if "lora_" in n and p.requires_grad}
    for name in [n for n in factors if "A.default" in n]:
        of_a = factors[name][4:].abs().sum(1)
        of_b = factors[name.replace("A.default", "B.default")][:, 4:].abs().sum(0)
        assert ((of_a > 0) | (of_b > 0)).all(), name


def test_a_lower_rank_is_the_best_approximation(base, arch):
    live, other, got = carried(base, arch, lora(r=8, lora_alpha=16), lora(r=4, lora_alpha=4))
    before, errors = state(live), {}
    for key in [k for k in before if k.endswith("lora_A.weight")]:
        key_b = key.replace("lora_A", "lora_B")
        delta = 2.0 * before[key_b].astype(np.float64) @ before[key]
        u, s, vt = np.linalg.svd(delta)
        best = (u[:, :4] * s[:4]) @ vt[:4]
        new_a, new_b = got.tensors[key], got.tensors[key_b]
        np.testing.assert_allclose(1.0 * new_b @ new_a, best, atol=1e-6 * s[0])
        assert np.linalg.norm(new_a) == pytest.approx(np.linalg.norm(new_b), rel=1e-5)  # split evenly
        module = key.removeprefix(P).removesuffix(".lora_A.weight")
        errors[module] = float(np.linalg.norm(delta - best) / np.linalg.norm(delta))
    worst = max(errors, key=errors.__getitem__)
    assert got.statements == (
        "rank 8 → 4 in 6 modules: the best approximation of that rank; the update changes by "
        f"{100 * sum(errors.values()) / 6:.2g} % on average, {100 * errors[worst]:.2g} % at most ({worst})",
        "scale 2 → 1 in 6 modules: folded into both factors",
    )
    assert not torch.allclose(logits_of(other), logits_of(live), atol=1e-3)


def test_directions_that_hold_nothing_start_fresh_when_the_rank_falls(base, arch):
    live, fresh = peft_of(base, lora(r=8)), state(peft_of(base, lora(r=4), seed=7))
    shapes = {key: value.shape for key, value in fresh.items()}
    got = convert(state(live), as_json(lora(r=8)), as_json(lora(r=4)), shapes, fresh)
    assert "; 24 directions without an update start fresh" in got.statements[0]
    assert "changes by 0 % on average, 0 % at most" in got.statements[0]
    assert all(np.array_equal(got.tensors[key], fresh[key]) for key in fresh)


def test_rank_up_and_down_again_is_the_same_update(base, arch):
    live, _, up = carried(base, arch, lora(), lora(r=8))
    low = state(peft_of(base, lora(), seed=9))
    down = convert(
        up.tensors, as_json(lora(r=8)), as_json(lora()), {key: value.shape for key, value in low.items()}, low
    )
    assert "changes by 0 % on average" in down.statements[0]
    for key, a in state(live).items():
        if key.endswith("lora_A.weight"):
            key_b = key.replace("lora_A", "lora_B")
            np.testing.assert_allclose(down.tensors[key_b] @ down.tensors[key], state(live)[key_b] @ a, atol=1e-6)


def test_nothing_differs(base, arch):
    config = lora(modules_to_save=["lm_head"], bias="none")
    live, _, got = carried(base, arch, config, config)
    assert got.statements == ()
    assert {k: v.tobytes() for k, v in got.tensors.items()} == {k: v.tobytes() for k, v in state(live).items()}


def test_a_grown_vocabulary(base, arch):
    """Rows for new tokens, in a matrix trained in full and in a low-rank embedding."""
    old = lora(r=4, target_modules=["embed_tokens"], modules_to_save=["lm_head"])
    live = peft_of(base, old, trained=True)
    other = peft_of(base, old, seed=7, n_tokens=zoo.VOCAB + 3)
    fresh = state(other)
    shapes = {key: value.shape for key, value in fresh.items()}
    got = convert(state(live), as_json(old), as_json(old), shapes, fresh)
    assert set(got.statements) == {
        "3 rows added to matrices trained in full: starting from the base's values",
        "3 rows added to low-rank embeddings: starting without an update",
    }
    set_peft_model_state_dict(other, {key: torch.from_numpy(v) for key, v in got.tensors.items()})
    feed = zoo.inputs(FAMILY, live)
    torch.testing.assert_close(zoo.logits(other, feed)[:, : zoo.VOCAB], zoo.logits(live, feed), rtol=0, atol=1e-5)
    assert np.array_equal(got.tensors[f"{P}lm_head.weight"][zoo.VOCAB :], fresh[f"{P}lm_head.weight"][zoo.VOCAB :])
    with pytest.raises(UsageError, match="shape"):
        convert(got.tensors, as_json(old), as_json(old), {k: v.shape for k, v in state(live).items()}, state(live))


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (lora(), lora(target_modules=["q_proj"]), "training would be lost: the adapter has 8 tensors in 4 modules"),
        (lora(), lora(target_modules=["q_proj", "v_proj"], modules_to_save=["down_proj"]), "trained in another way"),
        (lora(modules_to_save=["lm_head"]), lora(), "the adapter has 1 tensor in 1 module"),
        (
            lora(modules_to_save=["embed_tokens"]),
            lora(target_modules=[*LINEAR, "embed_tokens"]),
            "model.embed_tokens was trained in full, the run trains it by low-rank factors",
        ),
        (
            lora(target_modules=[*LINEAR, "embed_tokens"]),
            lora(modules_to_save=["embed_tokens"]),
            "model.embed_tokens was trained by low-rank factors, the run trains it in full",
        ),
        (lora(trainable_token_indices=[3]), lora(modules_to_save=["embed_tokens"]), "trained in single rows"),
        (lora(trainable_token_indices=[3, 5]), lora(trainable_token_indices=[5]), "1 token row that the run does not"),
        (lora(use_dora=True), lora(), "magnitudes in 6 modules, and the run has use_dora off"),
        (lora(), lora(use_dora=True), "use_dora on, and the adapter was trained without it in 6 modules"),
        (lora(use_dora=True), lora(use_dora=True, r=2), "DoRA's magnitudes belong to the old one"),
        (lora(), lora(lora_alpha=0), "alpha is 0"),
    ],
)
def test_what_would_lose_training_is_refused(base, arch, old, new, found):
    with pytest.raises(UsageError) as caught:
        carried(base, arch, old, new)
    assert found in caught.value.found
    assert caught.value.where


def test_the_way_out_is_named(base, arch):
    with pytest.raises(UsageError) as caught:
        carried(base, arch, lora(), lora(target_modules=["v_proj", "down_proj"]))
    assert "model.layers.0.self_attn.q_proj, model.layers.1.self_attn.q_proj" in caught.value.where
    assert "suture merge" in caught.value.do


# ------------------------------------------------------------------------------------------------------- bare tensors
