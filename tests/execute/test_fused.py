"""The compiled kernel: fused multiply-adds in a fixed order, one rounding, the same bytes however the work is cut."""

from __future__ import annotations

import ctypes
import ctypes.util
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suture import compiled
from suture.execute import fused
from suture.formats.dtypes import DTYPES, from_float, to_float
from suture.methods import METHODS

pytestmark = pytest.mark.skipif(fused.load() is None, reason="the compiled kernel was not built")
PAIRS = sorted(compiled.PAIRS)

fmaf = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
fmaf.argtypes, fmaf.restype = [ctypes.c_float] * 3, ctypes.c_float


def merged(w, b, a, s, dtypes):
    out = np.empty(w.shape, DTYPES[dtypes[1]].storage)
    formulas = fused.load()
    formulas.lora(w, out, formulas.pack({"A": a, "B": b}), s, dtypes)
    return out


def by_definition(w, b, a, s, dtypes):
    """The formula, an fma at a time, in C's own fmaf."""
    total = np.zeros(w.shape, np.float32)
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            x = 0.0
            for k in range(a.shape[0]):
                x = fmaf(float(b[i, k]), float(a[k, j]), x)
            total[i, j] = x
    with np.errstate(all="ignore"):
        return from_float(to_float(w, dtypes[0]) + total * np.float32(s), dtypes[1])


def same(x, y, dtype):
    """Equal as stored, where NaN is NaN whatever its payload."""
    a, b = to_float(x, dtype), to_float(y, dtype)
    return bool(((a == b) & (np.signbit(a) == np.signbit(b)) | (np.isnan(a) & np.isnan(b))).all())


def drawn(rng, rows, cols, rank, dtype):
    with np.errstate(all="ignore"):
        spread = (rng.standard_normal((rows, cols)) * 10.0 ** rng.uniform(-8, 5, (rows, cols))).astype(np.float32)
        spread.ravel()[::29], spread.ravel()[3::31], spread.ravel()[7::37] = np.nan, np.inf, -0.0
        w = from_float(spread, dtype)
    b = rng.standard_normal((rows, rank)).astype(np.float32)
    return w, b, (rng.standard_normal((rank, cols)) * 1e-2).astype(np.float32)


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 150), st.integers(1, 20), st.sampled_from(PAIRS), st.integers(0, 2**32 - 1))
def test_it_is_the_formula(rows, cols, rank, dtypes, seed):
    rng = np.random.default_rng(seed)
    w, b, a = drawn(rng, rows, cols, rank, dtypes[0])
    s = float(np.float32(rng.uniform(-3, 3)))
    assert same(merged(w, b, a, s, dtypes), by_definition(w, b, a, s, dtypes), dtypes[1])


@pytest.mark.parametrize("dtypes", PAIRS, ids="-".join)
def test_the_cut_changes_no_byte(dtypes):
    """Rows alone, in blocks of any size, all at once."""
    w, b, a = drawn(np.random.default_rng(1), 37, 200, 16, dtypes[0])
    whole = merged(w, b, a, 0.5, dtypes)
    for size in (1, 3, 4, 5, 16):
        parts = [merged(w[i : i + size], b[i : i + size], a, 0.5, dtypes) for i in range(0, 37, size)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_in_place(dtype):
    w, b, a = drawn(np.random.default_rng(2), 11, 130, 4, dtype)
    expected, formulas = merged(w, b, a, 2.0, (dtype, dtype)), fused.load()
    formulas.lora(w, w, formulas.pack({"A": a, "B": b}), 2.0, (dtype, dtype))
    assert w.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtypes", [p for p in PAIRS if p[0] != "F32"], ids="-".join)
def test_every_stored_value_survives_an_update_of_zero(dtypes):
    raw = np.arange(65536, dtype=np.uint16).view(DTYPES[dtypes[0]].storage).reshape(256, 256)
    zero = np.zeros((256, 1), np.float32), np.zeros((1, 256), np.float32)
    with np.errstate(all="ignore"):
        expected = from_float(to_float(raw, dtypes[0]) + np.float32(0), dtypes[1])
    assert same(merged(raw, *zero, 1.0, dtypes), expected, dtypes[1])


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_rounding_is_to_nearest_and_ties_to_even(dtype):
    """Every value between two neighbours, and a hair beside it."""
    stored = to_float(np.arange(65536, dtype=np.uint16).view(DTYPES[dtype].storage), dtype)
    with np.errstate(all="ignore"):
        middle = (stored[:-1] + stored[1:]) / np.float32(2)
        x = np.concatenate(
            [middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))]
        )
        x = x[: x.size // 64 * 64].reshape(-1, 64)
        zero = np.zeros((x.shape[0], 1), np.float32), np.zeros((1, 64), np.float32)
        assert same(merged(x, *zero, 1.0, ("F32", dtype)), from_float(x + np.float32(0), dtype), dtype)


def test_an_update_that_is_not_finite_is_so_in_the_output():
    w = np.zeros((4, 64), np.float32)
    b, a = np.full((4, 1), 3e38, np.float32), np.full((1, 64), 3e38, np.float32)
    assert np.isinf(merged(w, b, a, 1.0, ("F32", "F32"))).all()
    assert np.isnan(merged(w, b, a, 0.0, ("F32", "F32"))).all()


def test_the_order_of_the_sum_is_that_of_the_ranks():
    """Large and small terms that cancel: any other order gives another number."""
    a = np.array([[1e8], [1.0], [-1e8]], np.float32)
    b = np.ones((1, 3), np.float32)
    assert merged(np.zeros((1, 1), np.float32), b, a, 1.0, ("F32", "F32"))[0, 0] == 0.0
    assert math.fsum([1e8, 1.0, -1e8]) == 1.0


def squares(v):
    """‖v‖² of a row, as fused.c says: 64 lanes, then halves added."""
    lane = [0.0] * 64
    for j, x in enumerate(v):
        lane[j % 64] = fmaf(float(x), float(x), lane[j % 64])
    lanes = np.array(lane, np.float32)
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return lanes[0]


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 150), st.sampled_from(compiled.TYPES), st.integers(0, 2**32 - 1))
def test_the_length_of_a_row(rows, cols, dtype, seed):
    rng = np.random.default_rng(seed)
    v, m = rng.standard_normal((rows, cols)).astype(np.float32), rng.standard_normal(rows).astype(np.float32)
    out = np.empty(v.shape, DTYPES[dtype].storage)
    fused.load().dora(v, out, m, dtype)
    factor = m / np.sqrt(np.array([squares(row) for row in v], np.float32))
    assert same(out, from_float(v * factor[:, None], dtype), dtype)


def test_the_length_is_that_of_numpys_formula():
    rng = np.random.default_rng(3)
    w, b, a = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 300), (8, 4), (4, 300)))
    m, out, formulas = rng.uniform(1, 2, 8).astype(np.float32), np.empty((8, 300), np.float32), fused.load()
    formulas.lora(w, out, formulas.pack({"A": a, "B": b}), 0.5, ("F32", "F32"))
    formulas.dora(out, out, m, "F32")
    expected = METHODS["dora"].rows(w.astype(np.float64), {"A": a, "B": b, "m": m}, 0.5, slice(0, 8))
    np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-7)
