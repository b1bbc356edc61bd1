"""Every tensor of an adapter is used exactly once, or named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from methods.made import tensor

from suture.resolve import resolve
from suture.values import Adapter, Arch, Checkpoint, Param, Part, Resolved

P = "base_model.model."
SHAPES = {"a.weight": (6, 5), "a.bias": (6,), "b.weight": (6, 5), "table.weight": (9, 4), "norm.weight": (4,)}
KINDS = {
    "a.weight": "Linear",
    "a.bias": "Linear",
    "b.weight": "Linear",
    "table.weight": "Embedding",
    "norm.weight": "Other",
}
PAIR = {"lora_A.weight": (2, 5), "lora_B.weight": (6, 2)}


def arch() -> Arch:
    params = {n: Param(n, s, KINDS[n]) for n, s in SHAPES.items()}  # type: ignore[arg-type]
    return Arch("Tiny", "test", params, tuple(Part(n, n) for n in SHAPES), (), (), "table", None)


def resolved(shapes: dict[str, tuple[int, ...]], **config) -> Resolved:
    """An adapter with these keys (after the prefix) on the tiny base."""
    base = Checkpoint(Path(), {}, {n: tensor(n, *s) for n, s in SHAPES.items()}, (), None, {}, ())
    tensors = {P + key: tensor(P + key, *shape) for key, shape in shapes.items()}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    return resolve(base, Adapter(Path(), "default", config, tensors, "adapter_model.safetensors", ()), arch())


def of(module: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{module}.{suffix}": shape for suffix, shape in shapes.items()}


KEYS = {
    **of("a", PAIR),
    **of("b", PAIR),
    "a.lora_B.bias": (6,),
    "a.lora_magnitude_vector": (6,),
    "table.lora_embedding_A": (2, 9),
    "table.lora_embedding_B": (4, 2),
    "norm.weight": (4,),
    "a.base_layer.bias": (6,),
    "table.base_layer.weight": (9, 4),
    "table.original_module.weight": (9, 4),
    "nowhere.lora_A.weight": (2, 5),
    "layers.7.weight": (6, 5),
}


@given(st.sets(st.sampled_from(sorted(KEYS))))
def test_each_tensor_is_used_or_left_over_and_left_over_means_a_problem(keys):
    result = resolved({k: KEYS[k] for k in keys})
    everything = {P + k for k in keys}
    assert set(result.used) | set(result.leftover) == everything
    assert not set(result.used) & set(result.leftover)
    assert bool(result.leftover) == bool(result.problems)
    told = " ".join(p.where + p.found for p in result.problems)
    assert all(key in told for key in result.leftover)


def test_a_sound_adapter_leaves_nothing():
    sound = {k: s for k, s in KEYS.items() if not k.startswith(("nowhere", "layers"))}
    result = resolved(sound)
    assert (result.leftover, result.problems) == ((), ())
    assert [t.method for t in result.updates["a.weight"].terms] == ["dora"]
    assert [t.method for t in result.updates["b.weight"].terms] == ["lora"]


@pytest.mark.parametrize("missing", ["lora_A.weight", "lora_B.weight"])
def test_a_factor_without_its_partner(missing):
    pair = {k: s for k, s in PAIR.items() if k != missing}
    (problem,) = resolved(of("a", pair)).problems
    assert (problem.code, f"a.{missing}" in problem.found) == ("M302", True)


def test_a_layer_that_cannot_hold_a_low_rank_update():
    (first, *_) = resolved(of("norm", {"lora_A.weight": (2, 4), "lora_B.weight": (4, 2)})).problems
    assert (first.code, "norm" in first.found) == ("M303", True)


def test_the_scale_follows_the_config():
    def scale(**config) -> float:
        return resolved(of("a", PAIR), **config).updates["a.weight"].terms[0].scale

    assert scale() == 2.0
    assert scale(use_rslora=True) == 4 / 2**0.5
    assert scale(alpha_pattern={"a": 8}) == 4.0
    assert scale(alpha_pattern={"b": 8}) == 2.0


def test_a_trained_copy_wins_over_the_frozen_one_and_repeats_are_told():
    result = resolved(
        {"table.weight": (9, 4), "table.modules_to_save.weight": (9, 4), "table.original_module.weight": (9, 4)}
    )
    assert result.updates["table.weight"].replacement.name == P + "table.weight"
    assert result.copies == {P + "table.modules_to_save.weight": P + "table.weight"}
    assert result.frozen["table.weight"].name == P + "table.original_module.weight"


def test_a_frozen_copy_of_the_same_size_changes_nothing():
    assert resolved({"table.base_layer.weight": (9, 4)}).updates == {}


def test_a_resized_frozen_copy_is_the_base_of_the_sum():
    result = resolved(
        {"table.base_layer.weight": (11, 4), "table.lora_embedding_A": (2, 11), "table.lora_embedding_B": (4, 2)}
    )
    update = result.updates["table.weight"]
    assert (update.shape, update.replacement.name) == ((11, 4), P + "table.base_layer.weight")
