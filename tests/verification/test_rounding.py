"""Units in the last place and overflow, against numpy's and torch's own rounding."""

from __future__ import annotations

import numpy as np
import pytest

from suture.formats.dtypes import from_float, from_float_at_random, to_float
from suture.verification.rounding import FORMATS, agrees, agrees_at_random, is_neighbour

SIXTEEN = ("F16", "BF16")


def values(dtype: str) -> np.ndarray:
    """Every finite value of a 16-bit dtype, in order."""
    found = np.sort(to_float(np.arange(1 << 16, dtype=np.uint16).view("<f2" if dtype == "F16" else "<u2"), dtype))
    return found[np.isfinite(found)].astype(np.float64)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_half_ulp_is_half_the_distance_to_the_next_value(dtype):
    positive = values(dtype)
    positive = positive[positive >= 0][1:]
    assert np.array_equal(FORMATS[dtype].half_ulp(positive[:-1]), np.diff(positive) / 2)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_a_rounded_value_agrees_and_its_neighbours_do_not(dtype):
    rng = np.random.default_rng(0)
    exact = rng.standard_normal(20_000) * 10.0 ** rng.uniform(-6, 4, 20_000)
    exact = exact.astype(np.float32).astype(np.float64)
    raw = from_float(exact.astype(np.float32), dtype)
    stored, none = to_float(raw, dtype).astype(np.float64), np.zeros_like(exact)
    assert agrees(stored, exact, none, FORMATS[dtype]).all()
    for step in (-1, 1):
        bits = (raw.view(np.int16) + np.int16(step)).view(raw.dtype)
        other = to_float(bits, dtype).astype(np.float64)
        tie = np.abs(other - exact) == np.abs(stored - exact)
        assert not (agrees(other, exact, none, FORMATS[dtype]) & ~tie).any()


@pytest.mark.parametrize("dtype", [*SIXTEEN, "F32"])
def test_overflow_begins_where_rounding_gives_infinity(dtype):
    fmt = FORMATS[dtype]
    largest = (2 - 2 * fmt.unit) * 2.0**fmt.emax
    below, at = np.array([np.nextafter(fmt.overflow, 0)]), np.array([fmt.overflow])
    none, inf = np.zeros(1), np.array([np.inf])
    with np.errstate(invalid="ignore"):
        assert agrees(inf, at, none, fmt).all()
        assert agrees(-inf, -at, none, fmt).all()
        assert not agrees(-inf, at, none, fmt).any()
        assert not agrees(inf, below, none, fmt).any()
        assert agrees(np.array([largest]), below, none, fmt).all()
        assert not agrees(np.array([largest]), np.array([2.0 ** (fmt.emax + 1)]), none, fmt).any()


def test_special_values_meet_themselves_only():
    special = np.array([np.nan, np.inf, -np.inf, 1.0])
    stored, exact = (a.ravel() for a in np.meshgrid(special, special))
    with np.errstate(invalid="ignore"):
        found = agrees(stored, exact, np.zeros(16), FORMATS["F32"]).reshape(4, 4)
    assert np.array_equal(found, np.eye(4, dtype=bool))


def test_slack_widens_what_agrees():
    exact, fmt = np.array([1.0]), FORMATS["BF16"]
    stored = np.array([1.0 + 2.5 * 2.0**-8])
    assert not agrees(stored, exact, np.array([2.0**-8]), fmt).any()
    assert agrees(stored, exact, np.array([1.5 * 2.0**-8]), fmt).all()


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_the_rule_is_the_rounding_of_the_merge(dtype):
    """Without slack, exactly one value agrees: what `from_float_at_random` gives. Nothing is shared between the two."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal(50_000) * 10.0 ** rng.uniform(-9, 5, 50_000), [0.0, 65519.9, 7e4]])
    x = np.concatenate([x, x.astype(np.float32), to_float(from_float(x, dtype), dtype)])
    x = x.astype(np.float64)
    bits, none = rng.integers(0, 2**32, x.size, dtype=np.uint32), np.zeros(x.size)
    raw, fmt = from_float_at_random(x, dtype, bits), FORMATS[dtype]
    stored = to_float(raw, dtype).astype(np.float64)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(fmt.at_random(x, bits), stored)
        assert agrees_at_random(stored, x, none, bits, fmt).all()
        assert is_neighbour(stored, x, none, fmt)[np.isfinite(x)].all()
    for step in (-1, 1):
        with np.errstate(invalid="ignore"):
            neighbour = (raw.view(np.uint16) + np.uint16(step & 0xFFFF)).view(raw.dtype)
            other = to_float(neighbour, dtype).astype(np.float64)
            finite = np.isfinite(other) & (stored != 0)
            assert not agrees_at_random(other, x, none, bits, fmt)[finite].any()


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_a_share_that_the_bits_just_reach_goes_up(dtype):
    fmt, share = FORMATS[dtype], np.array([0.5, 0.25, 0.75, 2.0**-16])
    step = 2 * fmt.unit
    exact, bits = 1.0 + share * step, (2.0**32 * (1 - share)).astype(np.uint32)
    assert (fmt.at_random(exact, bits) == 1.0 + step).all()
    assert (fmt.at_random(exact, bits - np.uint32(1)) == 1.0).all()


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_what_agrees_is_what_some_value_within_the_slack_gives(dtype):
    """By trying many values within the slack."""
    rng, fmt = np.random.default_rng(1), FORMATS[dtype]
    x = rng.standard_normal(300) * 10.0 ** rng.uniform(-6, 2, 300)
    bits, slack = rng.integers(0, 2**32, x.size, dtype=np.uint32), np.abs(x) * rng.choice([1e-5, 1e-3, 0.03], x.size)
    tried = np.stack([fmt.at_random(z, bits) for z in np.linspace(x - slack, x + slack, 4001)])
    for stored in (*tried[::500], fmt.at_random(x - 1.2 * slack, bits), fmt.at_random(x + 2 * slack, bits)):
        given_by_some = (tried == stored).any(axis=0)
        np.testing.assert_array_equal(agrees_at_random(stored, x, slack, bits, fmt), given_by_some)


def test_special_values_meet_themselves_only_at_random():
    special = np.array([np.nan, np.inf, -np.inf, 1.0])
    stored, wanted = (a.ravel() for a in np.meshgrid(special, special))
    with np.errstate(invalid="ignore"):
        for bits in (0, 2**32 - 1):
            given = np.full(16, bits, np.uint32)
            found = agrees_at_random(stored, wanted, np.zeros(16), given, FORMATS["BF16"]).reshape(4, 4)
            assert np.array_equal(found, np.eye(4, dtype=bool))
