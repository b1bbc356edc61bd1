"""Conversions of tensors made by hand: properties over all shapes, and cases that no live adapter shows."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suture import targets
from suture.errors import FormatError, UsageError
from suture.training.convert import convert, counted
from suture.training.lowrank import with_rank

P = "base_model.model."
FOLDED = "folded into B (× {}, in float32); the update is unchanged"


def one(a=(4, 6), b=(5, 4), module="q_proj", seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"{P}{module}.lora_A.weight": rng.standard_normal(a, np.float32),
        f"{P}{module}.lora_B.weight": rng.standard_normal(b, np.float32),
    }


def shapes_of(tensors):
    return {key: value.shape for key, value in tensors.items()}


SMALL = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_higher_rank_leaves_every_update_as_it_is(data):
    n, m, r_old = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    r_new = data.draw(st.integers(r_old, 9))
    scales = st.fractions(-4, 4).filter(bool).map(float)
    values = st.floats(-3, 3, width=32).filter(lambda v: v == 0 or abs(v) > 1e-6)
    a, b = (
        data.draw(hnp.arrays(np.float32, (r_old, n), elements=values)),
        data.draw(hnp.arrays(np.float32, (m, r_old), elements=values)),
    )
    alpha, beta, rslora = data.draw(scales), data.draw(scales), data.draw(st.booleans())
    old_config = {"r": r_old, "lora_alpha": alpha, "use_rslora": rslora}
    new_config = {"r": r_new, "lora_alpha": beta, "use_rslora": data.draw(st.booleans())}
    keys = tuple(one())
    fresh = {keys[0]: np.ones((r_new, n), np.float32), keys[1]: np.zeros((m, r_new), np.float32)}
    got = convert({keys[0]: a, keys[1]: b}, old_config, new_config, shapes_of(fresh), fresh).tensors
    old = targets.scale(old_config, "q_proj") * b.astype(np.float64) @ a
    new = targets.scale(new_config, "q_proj") * got[keys[1]].astype(np.float64) @ got[keys[0]]
    size = abs(targets.scale(old_config, "q_proj")) * np.abs(b).astype(np.float64) @ np.abs(a)
    assert (np.abs(new - old) <= 1e-6 * size).all()
    assert np.array_equal(got[keys[0]][:r_old], a)


def test_kernels_of_convolutions():
    old, fresh = one((4, 3, 2, 2), (5, 4, 1, 1)), one((2, 3, 2, 2), (5, 2, 1, 1), seed=1)
    got = convert(old, SMALL, {**SMALL, "r": 2, "lora_alpha": 2}, shapes_of(fresh), fresh)
    (a, b), (a_new, b_new) = old.values(), got.tensors.values()
    u, s, vt = np.linalg.svd(b.reshape(5, 4) @ a.reshape(4, 12), full_matrices=False)
    np.testing.assert_allclose(b_new.reshape(5, 2) @ a_new.reshape(2, 12), (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5)


def test_a_bias_of_b_is_scaled_with_b():
    old = one() | {f"{P}q_proj.lora_B.bias": np.arange(5, dtype=np.float32)}
    got = convert(old, SMALL, {**SMALL, "lora_alpha": 2}, shapes_of(old), old)
    assert np.array_equal(got.tensors[f"{P}q_proj.lora_B.bias"], 2 * np.arange(5, dtype=np.float32))


def test_a_bias_keeps_its_values_when_its_module_becomes_low_rank():
    old = {f"{P}q_proj.bias": np.arange(5, dtype=np.float32)}
    fresh = one() | {f"{P}q_proj.base_layer.bias": np.zeros(5, np.float32)}
    got = convert(old, SMALL, SMALL, shapes_of(fresh), fresh)
    assert np.array_equal(got.tensors[f"{P}q_proj.base_layer.bias"], np.arange(5))
    assert got.statements[1] == "1 bias vector carried over under another key"


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes_become_float32(dtype):
    old = {key: value.astype(dtype) * (1 + 2**-40 if dtype is np.float64 else 1) for key, value in one().items()}
    got = convert(old, SMALL, SMALL, shapes_of(old), {})
    assert all(np.array_equal(got.tensors[key], old[key].astype(np.float32)) for key in old)
    assert got.statements == (("2 tensors rounded to float32",) if dtype is np.float64 else ())


def test_integers_are_no_weights():
    with pytest.raises(FormatError, match="uint16"):
        convert({key: value.astype(np.uint16) for key, value in one().items()}, SMALL, SMALL, shapes_of(one()), {})


def test_copies_of_the_base_are_no_training():
    copy = {f"{P}embed_tokens.base_layer.weight": np.ones((3, 2), np.float32)}
    got = convert(one() | copy, SMALL, SMALL, shapes_of(one()), {})
    assert got.statements == ("1 matrix left out: a copy of the base, never trained",)
    assert convert(one() | copy, SMALL, SMALL, shapes_of(one()), copy).statements == ()
    other = {key: 2 * value for key, value in copy.items()}
    with pytest.raises(UsageError, match="training would be lost"):
        convert(one() | copy, SMALL, SMALL, shapes_of(one()), other)


EXPERTS = {"r": 2, "lora_alpha": 4, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


def test_fused_experts_keep_their_rank():
    inner, outer = "model.layers.0.mlp.experts.base_layer", "model.layers.0.mlp.experts"
    old = one((8, 6), (5, 8), inner) | one((8, 5), (6, 8), outer, seed=1)
    assert convert(old, EXPERTS, EXPERTS, shapes_of(old), {}).statements == ()
    got = convert(old, EXPERTS, {**EXPERTS, "lora_alpha": 2}, shapes_of(old), {})
    key = f"{P}{inner}.lora_B.weight"
    assert np.array_equal(got.tensors[key], 2 * old[key])
    assert got.statements == (f"scale 2 → 1 in 2 modules: {FOLDED.format(2)}",)
    fresh = one((16, 6), (5, 16), inner) | one((16, 5), (6, 16), outer)
    with pytest.raises(UsageError, match="rank of fused experts"):
        convert(old, EXPERTS, {**EXPERTS, "r": 4}, shapes_of(fresh), fresh)
    with pytest.raises(UsageError, match="target_parameters differ"):
        convert(old, EXPERTS, {**EXPERTS, "target_parameters": ["mlp.experts.down_proj"]}, shapes_of(old), old)
    patterns = {**EXPERTS, "alpha_pattern": {"down_proj": 8}}
    with pytest.raises(UsageError, match="scales of several fused parameters"):
        convert(old, EXPERTS, patterns, shapes_of(old), old)


@pytest.mark.parametrize("dotless", [["gate_up_proj"], []])
def test_a_bare_parameter_name_does_not_take_ordinary_modules_for_experts(dotless):
    fresh = one((8, 6), (5, 8), seed=1)
    config = {**SMALL, "target_parameters": dotless}
    got = convert(one(), config, {**config, "r": 8, "lora_alpha": 8}, shapes_of(fresh), fresh)
    assert got.statements[0].startswith("rank 4 → 8 in 1 module")


def test_a_config_of_another_adapter():
    with pytest.raises(FormatError, match="rank 8 in the config"):
        convert(one(), {**SMALL, "r": 8}, SMALL, shapes_of(one()), one())
    half = dict(list(one().items())[:1])
    with pytest.raises(FormatError, match="this one is not"):
        convert(half, SMALL, SMALL, shapes_of(one()), one())


def test_values_that_are_not_finite_are_no_start():
    old, fresh = one(), one((8, 6), (5, 8))
    old[f"{P}q_proj.lora_B.weight"][0, 0] = np.nan
    with pytest.raises(FormatError, match="not finite"):
        convert(old, SMALL, {**SMALL, "r": 8}, shapes_of(fresh), fresh)


def test_fresh_values_that_could_never_learn_are_a_mistake_of_the_caller():
    zero = (np.zeros((3, 4), np.float32), np.zeros((5, 3), np.float32))
    with pytest.raises(ValueError, match="zero"):
        with_rank((np.ones((2, 4), np.float32), np.ones((5, 2), np.float32)), zero, 1.0)
    with pytest.raises(ValueError, match="shape"):
        convert({}, SMALL, SMALL, {"x": (2,)}, {"x": np.zeros(3, np.float32)})


def test_numbers():
    assert (counted(1, "module"), counted(2000, "module")) == ("1 module", "2,000 modules")
