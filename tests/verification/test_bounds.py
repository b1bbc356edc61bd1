"""The bounds hold for float32 sums in the worst order, and are not so wide that they mean nothing."""

from __future__ import annotations

import numpy as np
import pytest

from suture.methods import METHODS
from suture.values import Term
from suture.verification.bounds import Step, bound, gamma
from suture.verification.rounding import FLOAT32_UNIT

R, ROWS, COLS = 24, 40, 300


def inputs(seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    f = {"A": rng.standard_normal((R, COLS)), "B": rng.standard_normal((ROWS, R))}
    f |= {"m": np.abs(rng.standard_normal(COLS)), "b": rng.standard_normal(ROWS), "rows": np.array([2, 7])}
    f["D"] = rng.standard_normal((2, COLS))
    w = rng.standard_normal((ROWS, COLS))
    f = {k: v if k == "rows" else v.astype(np.float32) for k, v in f.items()}
    return w.astype(np.float32), f


def step_of(method: str, w: np.ndarray, f: dict, s: float = 1.7) -> Step:
    term = Term(method, "m", {}, s, 0, ROWS, R)
    wide = {k: v if k == "rows" else v.astype(np.float64) for k, v in f.items()}
    sizes = {k: np.abs(v) for k, v in wide.items()}
    exact, everything = w.astype(np.float64), slice(0, ROWS)
    if METHODS[method].prepare is not None:
        wide = dict(METHODS[method].prepare(lambda: [(everything, exact.copy())], wide, s))
        sizes = dict(METHODS[method].prepare(lambda: [(everything, np.abs(exact))], sizes, s))
    after = METHODS[method].rows(exact.copy(), wide, s, everything)
    return Step(term, wide, sizes, exact, after, everything)


def one_by_one(terms: np.ndarray, axis: int) -> np.ndarray:
    """Sum in float32, one term after the other: the order with the largest error."""
    total = np.zeros(np.delete(terms.shape, axis), np.float32)
    for part in np.moveaxis(terms, axis, 0):
        total = (total + part).astype(np.float32)
    return total


def lora32(w: np.ndarray, f: dict, s: float) -> np.ndarray:
    products = f["B"][:, :, None] * f["A"][None]
    return w + np.float32(s) * one_by_one(products, 1)


def dora32(w: np.ndarray, f: dict, s: float, axis: int) -> np.ndarray:
    v = lora32(w, f, s)
    norm = np.sqrt(one_by_one(v * v, axis))
    m = f["m"][:ROWS] if axis == 1 else f["m"]
    return np.expand_dims((m / norm).astype(np.float32), axis) * v


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("method", "compute", "loosest"),
    [
        ("lora", lora32, 60),
        ("dora", lambda w, f, s: dora32(w, f, s, 1), 600),
        ("dora_columns", lambda w, f, s: dora32(w, f, s, 0), 600),
    ],
)
def test_float32_stays_within_the_bound(method, compute, loosest, seed):
    w, f = inputs(seed)
    step = step_of(method, w, f)
    limits = bound(step, np.zeros_like(step.before), FLOAT32_UNIT)
    error = np.abs(compute(w, f, 1.7).astype(np.float64) - step.after)
    assert (error <= limits.error).all()
    assert limits.error.max() < loosest * error.max()


def test_the_norm_of_a_long_row_may_be_summed_in_any_order():
    w = np.full((1, 50_000), 0.1, np.float32)  # every sum of equal squares rounds the same way
    f = {"A": np.zeros((1, 50_000), np.float32), "B": np.zeros((1, 1), np.float32), "m": np.ones(1, np.float32)}
    term = Term("dora", "m", {}, 1.0, 0, 1, 1)
    wide = {k: v.astype(np.float64) for k, v in f.items()}
    exact = METHODS["dora"].rows(w.astype(np.float64), wide, 1.0, slice(0, 1))
    step = Step(term, wide, wide, w.astype(np.float64), exact, slice(0, 1))
    error = np.abs(w / np.sqrt(one_by_one(w * w, 1)) - exact).max()
    assert error > 100 * FLOAT32_UNIT * exact.max()
    assert error <= bound(step, np.zeros_like(exact), FLOAT32_UNIT).error.max()


def test_the_bound_of_lora_is_the_one_in_the_docstring():
    w, f = inputs()
    step = step_of("lora", w, f)
    limits = bound(step, np.zeros_like(step.before), FLOAT32_UNIT)
    update = 1.7 * np.abs(step.factors["B"]) @ np.abs(step.factors["A"])
    assert np.allclose(limits.error, gamma(R + 2, FLOAT32_UNIT) * (np.abs(w) + update), rtol=1e-12)
    assert np.allclose(limits.update, update)


def test_replaced_rows_have_no_error_and_the_others_keep_theirs():
    w, f = inputs()
    before = np.full((ROWS, COLS), 1e-3)
    error = bound(step_of("trainable_tokens", w, f), before, FLOAT32_UNIT).error
    assert (error[[2, 7]] == 0).all()
    assert np.allclose(np.delete(error, [2, 7], axis=0), 1e-3)


def test_an_error_that_comes_in_is_passed_on():
    w, f = inputs()
    step = step_of("lora", w, f)
    alone = bound(step, np.zeros_like(step.before), FLOAT32_UNIT).error
    error = bound(step, np.full_like(step.before, 0.5), FLOAT32_UNIT).error
    assert (error >= alone + 0.5).all()


def test_a_norm_that_float32_cannot_find_has_no_bound():
    w, f = inputs()
    f["B"][:] = 0
    w[3] = 0  # V = 0: m · 0 / 0
    with np.errstate(all="ignore"):
        step = step_of("dora", w, f)
        error = bound(step, np.zeros_like(step.before), FLOAT32_UNIT).error
    assert not np.isfinite(error[3]).any()
    assert np.isfinite(np.delete(error, 3, axis=0)).all()
