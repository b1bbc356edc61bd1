"""Integers that share bytes, scales of groups, and pieces that are not the whole."""

from __future__ import annotations

import numpy as np
import pytest

from suture.formats.dtypes import from_float
from suture.formats.quantized import piecewise
from suture.formats.quantized.piecewise import add, in_pieces, integers, multiply, round_to, subtract


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 3, 7, 8, 9, 31, 32, 33, 40])
def test_integers_are_the_bits_in_order(bits, count):
    packed = np.random.default_rng(count).integers(0, 256, (5, -(-count * bits // 8)), np.uint8)
    values = integers(packed, bits, count)
    assert (values.dtype, values.shape) == (np.uint8, (5, count))
    digits = np.unpackbits(packed, axis=1, bitorder="little")[:, : count * bits].reshape(5, count, bits)
    np.testing.assert_array_equal(values, (digits << np.arange(bits)).sum(-1))


def plus(x, y, width):
    add(x, y, width, "F32")


@pytest.mark.parametrize(("function", "formula"), [(multiply, np.multiply), (subtract, np.subtract), (plus, np.add)])
@pytest.mark.parametrize(("groups", "width"), [(1, 20), (1, 4), (5, 4), (3, 8), (20, 1)])
def test_each_group_has_its_own(function, formula, groups, width):
    random = np.random.default_rng(0)
    x, y = random.standard_normal((3, 20)).astype(np.float32), random.standard_normal((3, groups)).astype(np.float32)
    expected = formula(x, y if groups == 1 else y.repeat(width, 1)[:, :20])
    function(x, y, width)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("n_rows", [0, 1, 2, 7])
def test_pieces_make_up_the_matrix(monkeypatch, dtype, n_rows):
    monkeypatch.setattr(piecewise, "_VALUES", 24)
    whole = np.random.default_rng(0).standard_normal((n_rows, 10)).astype(np.float32)
    ours = in_pieces(n_rows, 10, dtype, lambda a, b, x: np.copyto(x, whole[a:b]))
    np.testing.assert_array_equal(ours, from_float(whole, dtype))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_sum_is_rounded_once(dtype):
    """Terms of few bits, far apart: half of the sums are in the middle of two values, but for what float32 loses."""
    random = np.random.default_rng(0)
    half = 1 << (8 if dtype == "BF16" else 11)
    x = (random.integers(half // 2, half, (64, 256)) * 2.0 + random.integers(0, 2, (64, 256))).astype(np.float32)
    y = (random.integers(1, 256, (64, 256)) * 2.0 ** random.integers(-34, 2, (64, 256))).astype(np.float32)
    x *= random.choice([-1, 1], x.shape)
    y *= random.choice([-1, 1], y.shape)
    exact = x.astype(np.float64) + y
    lost = (x + y) != exact
    assert lost.mean() > 0.3
    assert (from_float(x + y, dtype) != from_float(exact, dtype)).any()
    add(x, y, 1, dtype)
    np.testing.assert_array_equal(from_float(x, dtype), from_float(exact, dtype))


def test_sums_that_are_not_finite_stay():
    x = np.array([[np.inf, np.inf, np.nan, 3e38]], np.float32)
    with np.errstate(all="ignore"):
        add(x, np.array([[-np.inf, 1, 1, 3e38]], np.float32), 1, "BF16")
    np.testing.assert_array_equal(x, np.array([[np.nan, np.inf, np.nan, np.inf]], np.float32))


def test_rounding_in_place():
    x = np.array([1 + 2**-9, np.pi, np.nan, np.inf], np.float32)
    round_to(x, "BF16")
    np.testing.assert_array_equal(x, np.array([1, 3.140625, np.nan, np.inf], np.float32))
