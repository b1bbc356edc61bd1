"""The compiled judge says of every row what numpy's says, or less: that somebody should look closer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suture import compiled
from suture.formats.dtypes import DTYPES, from_float, from_float_at_random, to_float
from suture.verification import bounds, exact
from suture.verification.rounding import FLOAT32_UNIT, FORMATS, agrees, agrees_at_random

pytestmark = pytest.mark.skipif(bool(compiled.why_not()), reason="the compiled judge was not built")
PAIRS = sorted(compiled.PAIRS)


def pair(rng, rows, cols, rank, dtypes):
    """Stored values before and after a LoRA, and its factors in float64."""
    w = from_float((rng.standard_normal((rows, cols)) * 10.0 ** rng.uniform(-6, 2)).astype(np.float32), dtypes[0])
    b, a = rng.standard_normal((rows, rank)), rng.standard_normal((rank, cols)) * 10.0 ** rng.uniform(-6, 2)
    s = float(rng.uniform(-3, 3))
    x = to_float(w, dtypes[0]).astype(np.float64) + s * (b @ a)
    with np.errstate(over="ignore"):
        stored = from_float(x.astype(np.float32), dtypes[1])
    gamma = bounds.gamma(bounds.ROUNDINGS["lora"](rank), FLOAT32_UNIT)
    return w, stored, x, exact.Product(b, a, s, gamma)


def right(w, stored, x, product, dtypes):
    """The rule of `judge`, by numpy."""
    size = np.abs(to_float(w, dtypes[0])) + abs(product.s) * (np.abs(product.b) @ np.abs(product.a))
    values = to_float(stored, dtypes[1]).astype(np.float64)
    return agrees(values, x, product.gamma * size, FORMATS[dtypes[1]])


def judged(w, stored, product, dtypes):
    return exact.judge(w.view(np.uint8).ravel(), stored.view(np.uint8).ravel(), product, dtypes)


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 100), st.integers(1, 12), st.sampled_from(PAIRS), st.integers(0, 2**32 - 1))
def test_the_same_rows_are_doubtful(rows, cols, rank, dtypes, seed):
    rng = np.random.default_rng(seed)
    w, stored, x, product = pair(rng, rows, cols, rank, dtypes)
    for place in rng.integers(0, stored.size, rng.integers(0, 4)):  # a neighbour, or something else
        stored.view(f"u{stored.itemsize}").flat[place] ^= rng.choice([1, 2, 1 << 8])
    expected = ~right(w, stored, x, product, dtypes).all(axis=1)
    found = judged(w, stored, product, dtypes)
    if found is None:
        assert not np.isfinite(to_float(stored, dtypes[1])).all()
        return
    doubtful, largest = found
    assert (doubtful == expected).all()
    size = np.abs(x).max() + abs(product.s) * (np.abs(product.b) @ np.abs(product.a)).max()  # what float64 rounds
    np.testing.assert_allclose(largest, np.abs(to_float(stored, dtypes[1]) - x).max(), rtol=1e-9, atol=1e-14 * size)


@pytest.mark.parametrize("dtypes", PAIRS, ids="-".join)
def test_a_bit_anywhere_is_seen(dtypes):
    rng = np.random.default_rng(5)
    w, stored, _, product = pair(rng, 7, 70, 3, dtypes)
    assert not judged(w, stored, product, dtypes)[0].any()
    for row, col in [(0, 0), (3, 31), (4, 32), (6, 69)]:
        other = stored.copy()
        other.view(f"u{stored.itemsize}")[row, col] ^= 1 << 8 * stored.itemsize - 1  # the sign
        assert np.flatnonzero(judged(w, other, product, dtypes)[0]).tolist() == [row]


@pytest.mark.parametrize("dtypes", PAIRS, ids="-".join)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_to_numpy(dtypes, value):
    for spoiled in (0, 1):
        w, stored, _, product = pair(np.random.default_rng(6), 5, 40, 2, dtypes)
        sides = [w, stored]
        sides[spoiled][2, 3] = from_float(np.array([value], np.float32), dtypes[spoiled])[0]
        assert judged(w, stored, product, dtypes) is None


def test_other_types_are_left_to_numpy():
    zero = np.zeros(8, np.uint8)
    assert exact.judge(zero, zero, exact.Product(np.zeros((1, 1)), np.zeros((1, 1)), 1.0, 0.0), ("F64", "F64")) is None


def test_the_types_are_those_of_the_kernel():
    assert {a for a, _ in PAIRS} == {"F32", "BF16", "F16"} <= set(DTYPES)


@settings(max_examples=60)
@given(
    st.integers(1, 9), st.integers(1, 100), st.integers(1, 12), st.sampled_from(sorted(compiled.RANDOM_PAIRS)),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_same_rows_are_doubtful_at_random(rows, cols, rank, dtypes, seed):
    rng = np.random.default_rng(seed)
    w = from_float((rng.standard_normal((rows, cols)) * 10.0 ** rng.uniform(-6, 2)).astype(np.float32), dtypes[0])
    b, a = rng.standard_normal((rows, rank)), rng.standard_normal((rank, cols)) * 10.0 ** rng.uniform(-6, 2)
    s, gamma = float(rng.uniform(-3, 3)), bounds.gamma(rank + 2, FLOAT32_UNIT) * rng.choice([1, 1e4])
    x = to_float(w, dtypes[0]).astype(np.float64) + s * (b @ a)
    error = gamma * (np.abs(to_float(w, dtypes[0])) + abs(s) * (np.abs(b) @ np.abs(a)))
    bits, off = rng.integers(0, 2**32, (rows, cols), dtype=np.uint32), rng.choice([0, 0.9, 1.1]) * error
    with np.errstate(over="ignore"):
        stored = from_float_at_random(x + off * rng.choice([-1, 1], x.shape), dtypes[1], bits)
    for place in rng.integers(0, stored.size, rng.integers(0, 4)):  # a neighbour, or something else
        stored.view("u2").flat[place] ^= rng.choice([1, 2, 1 << 8])
    values = to_float(stored, dtypes[1]).astype(np.float64)
    expected = ~agrees_at_random(values, x, error, bits, FORMATS[dtypes[1]]).all(axis=1)
    product = exact.Product(b, a, s, gamma)
    found = exact.judge(w.view(np.uint8).ravel(), stored.view(np.uint8).ravel(), product, dtypes, bits)
    if found is None:
        assert not np.isfinite(values).all()
        return
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize("dtypes", [p for p in compiled.RANDOM_PAIRS if p[0] == "F32"], ids="-".join)
def test_a_share_that_the_bits_just_reach_goes_up(dtypes):
    """Without an update and without slack."""
    step = 2 * FORMATS[dtypes[1]].unit
    w = np.full((1, 40), 1.0 + step / 4, np.float32)
    nothing = exact.Product(np.zeros((1, 1)), np.zeros((1, 40)), 1.0, 0.0)
    for bits, up in ((3 * 2**30, True), (3 * 2**30 - 1, False)):
        for stored, right in ((1.0 + step, up), (1.0, not up)):
            raw = from_float(np.full((1, 40), stored, np.float32), dtypes[1])
            sides = (x.view(np.uint8).ravel() for x in (w, raw))
            doubtful, _ = exact.judge(*sides, nothing, dtypes, np.full((1, 40), bits, np.uint32))
            assert doubtful[0] != right
