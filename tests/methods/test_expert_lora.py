"""LoRA on fused experts: the three readings of one file, and when it is refused."""

from __future__ import annotations

import numpy as np
import pytest
from methods.made import factors, linear, normal, target, tensor

from suture.methods import expert_lora
from suture.methods.base import BindError

E, R = 3, 2
OLD, NEW = (0, 18), (0, 21)


def delta(weight, a_shape, b_shape, **more):
    """Δ of every expert (before the scale), and the factors it was made from."""
    arrays = {"A": normal(*a_shape, seed=1), "B": normal(*b_shape, seed=2)}
    names = {"A": tensor("A", *a_shape), "B": tensor("B", *b_shape)}
    update = expert_lora.bind(target(weight, rank=R, **more), names)
    products = [(f := factors(t, arrays))["B"] @ f["A"] for t in update.terms]
    assert [(t.start, t.stop) for t in update.terms] == [
        (e * weight.shape[1], (e + 1) * weight.shape[1]) for e in range(E)
    ]
    return np.stack(products), arrays["A"].reshape(E, R, -1), arrays["B"]


def experts(n_rows, n_cols, *, transposed=False):
    return linear(E, n_rows, n_cols, kind="Experts", name="mlp.experts.gate_up_proj", transposed=transposed)


def test_out_in_experts_as_peft_reads_them():
    got, a, b = delta(experts(6, 5), (E * R, 5), (6, R * E))
    np.testing.assert_allclose(got, np.einsum("ore,eri->eoi", b.reshape(6, R, E), a), rtol=1e-5, atol=1e-6)


def test_transposed_experts():
    got, a, b = delta(experts(5, 6, transposed=True), (E * R, 5), (6, R * E))
    np.testing.assert_allclose(got, np.einsum("ore,eri->eio", b.reshape(6, R, E), a), rtol=1e-5, atol=1e-6)


def test_axes_of_an_old_file_are_told_by_its_shapes():
    got, a, b = delta(experts(6, 5), (E * R, 6), (5, R * E))
    np.testing.assert_allclose(got, np.einsum("ore,eri->eio", b.reshape(5, R, E), a), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("version", "axes"), [(OLD, "ore,eri->eio"), (NEW, "ore,eri->eoi")])
def test_square_experts_are_read_by_the_version(version, axes):
    got, a, b = delta(experts(6, 6), (E * R, 6), (6, R * E), peft_version=version)
    np.testing.assert_allclose(got, np.einsum(axes, b.reshape(6, R, E), a), rtol=1e-5, atol=1e-6)


def test_square_experts_of_an_unknown_version_are_refused():
    with pytest.raises(BindError) as error:
        delta(experts(6, 6), (E * R, 6), (6, R * E))
    assert error.value.code == "M307"


def test_expert_major_packing_of_b():
    got, a, b = delta(experts(6, 5), (E * R, 5), (6, R * E), expert_major=True)
    np.testing.assert_allclose(got, np.einsum("oer,eri->eoi", b.reshape(6, E, R), a), rtol=1e-5, atol=1e-6)
