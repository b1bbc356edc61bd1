"""Units in the last place and overflow, against numpy's and torch's own rounding."""

from __future__ import annotations

import numpy as np
import pytest

from suture.formats.dtypes import from_float, to_float
from suture.verification.rounding import FORMATS, agrees

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
