"""Rounding up and down at random: its definition in fractions, and probabilities that are exact."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.formats.dtypes import DTYPES, from_float, from_float_at_random, to_float

LARGEST = {"BF16": (2 - 2.0**-7) * 2.0**127, "F16": 65504.0}
SPECIAL = [
    *(0x00000000, 0x00000001, 0x007FFFFF, 0x00800000, 0x33000000, 0x337FFFFF, 0x33800000, 0x387FFFFF, 0x38800000),
    *(0x477FE000, 0x477FE001, 0x477FEFFF, 0x477FF000, 0x7F7F0000, 0x7F7F0001, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF),
    *(0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF),
]


def by_fractions(x, dtype, bits):
    """Stochastic rounding of one finite value, by its definition, exactly."""
    digits, least = {"BF16": (7, -126), "F16": (10, -14)}[dtype]
    size = abs(Fraction(x))
    if size > LARGEST[dtype]:
        return None
    exponent = max(math.frexp(x)[1] - 1, least) if x else least
    step = Fraction(2) ** (exponent - digits)
    below = size // step
    up = size / step - below >= 1 - Fraction(bits, 2**32)
    return math.copysign(float((below + up) * step), x)


PATTERNS = st.integers(0, 2**32 - 1) | st.sampled_from(SPECIAL) | st.integers(0x33000000, 0x38900000)
BITS = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**16 - 1, 2**16, 2**31, 2**32 - 1])


@settings(max_examples=300)
@given(st.lists(st.tuples(PATTERNS, st.booleans(), BITS), min_size=1, max_size=50), st.sampled_from(["F16", "BF16"]))
def test_at_random_is_its_definition(drawn, dtype):
    patterns = np.array([p & 0x7FFFFFFF | sign << 31 for p, sign, _ in drawn], np.uint32)
    bits, x = np.array([b for *_, b in drawn], np.uint32), patterns.view(np.float32)
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64)
    found = {f: from_float_at_random(v, dtype, bits) for f, v in (("float32", x), ("float64", wide))}
    assert found["float32"].tobytes() == found["float64"].tobytes()
    values, nearest = (to_float(raw, dtype) for raw in (found["float32"], from_float(x, dtype)))
    for k in range(len(x)):
        expected = by_fractions(float(x[k]), dtype, int(bits[k])) if np.isfinite(x[k]) else None
        np.testing.assert_array_equal(values[k], nearest[k] if expected is None else np.float32(expected))
        assert np.signbit(values[k]) == np.signbit(x[k])


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(), BITS), min_size=1, max_size=50), st.sampled_from(["F16", "BF16"]))
def test_at_random_from_float64(drawn, dtype):
    x, bits = np.array([v for v, _ in drawn]), np.array([b for _, b in drawn], np.uint32)
    values, nearest = (to_float(r, dtype) for r in (from_float_at_random(x, dtype, bits), from_float(x, dtype)))
    for k in range(len(x)):
        expected = by_fractions(float(x[k]), dtype, int(bits[k])) if np.isfinite(x[k]) else None
        np.testing.assert_array_equal(values[k], nearest[k] if expected is None else np.float32(expected))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_what_can_be_stored_stays_whatever_the_bits(dtype):
    raw = np.arange(65536, dtype=np.uint16).view(DTYPES[dtype].storage)
    x = to_float(raw, dtype)
    for bits in (0, 1, 2**31, 2**32 - 1):
        found = from_float_at_random(x, dtype, np.full(x.shape, bits, np.uint32))
        nan = np.isnan(x)
        np.testing.assert_array_equal(found[~nan].view(np.uint16), raw[~nan].view(np.uint16))
        assert np.isnan(to_float(found[nan], dtype)).all()


@pytest.mark.parametrize("x", [1.2345678, -3.1e-3, 6.1e-5, 1.3e-7, 5.9e-8, 1e-39, 64444.4], ids=str)
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_the_probability_is_the_distance_exactly(dtype, x):
    """Over all values of the 16 bits that decide, as many go up as the distance from the value below says."""
    x = np.float32(x)
    bits = np.arange(65536, dtype=np.uint32) << 16
    found = to_float(from_float_at_random(np.full(65536, x), dtype, bits), dtype).astype(np.float64)
    small = dtype == "F16" and abs(x) < 2.0**-16  # more than 16 bits lie below the last one that is kept
    np.testing.assert_allclose(found.mean(), x, rtol=0, atol=2.0**-24 / 65536 if small else 0)


@pytest.mark.parametrize("dtype", ["F32", "F64", "I8"])
def test_only_16_bits_are_rounded_at_random(dtype):
    with pytest.raises(ValueError, match=f"{dtype} values are rounded to nearest"):
        from_float_at_random(np.zeros(1, np.float32), dtype, np.zeros(1, np.uint32))
