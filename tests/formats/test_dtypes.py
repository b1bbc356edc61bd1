from fractions import Fraction

import numpy as np
import pytest

from suture.formats.dtypes import DTYPES, compute_dtype, from_float, to_float

PATTERNS = np.arange(65536, dtype=np.uint16)


def float32_cases() -> np.ndarray:
    """Random bit patterns of float32, and every pattern around the ties of bf16 and the ends of the range."""
    rng = np.random.default_rng(0)
    random = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    halves = (PATTERNS.astype(np.uint32) << 16)[:, None] + np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return np.concatenate([random, halves.ravel()]).view(np.float32)


def float64_cases(steps: np.ndarray) -> np.ndarray:
    """Values between 0 and the last step: some steps, middles between two of them, and the float64 beside each."""
    rng = np.random.default_rng(1)
    few = np.sort(rng.choice(len(steps) - 1, 700, replace=False))
    points = np.concatenate([steps[1:][few], (steps[few] + steps[few + 1]) / 2, [5e-324, steps[1] / 2]])
    return np.concatenate([points, np.nextafter(points, 0), np.nextafter(points, steps[-1])])


def exactly_rounded(x: float, steps: np.ndarray) -> float:
    """The value of `steps` (finite, ascending, even significands at even places) that is nearest to x, by fractions."""
    i = int(np.searchsorted(steps, x))
    below, above = steps[i - 1], steps[i]
    gap = 2 * Fraction(float(x)) - Fraction(float(below)) - Fraction(float(above))
    return float(above if gap > 0 or (gap == 0 and i % 2 == 0) else below)


def test_the_table_has_one_size_for_name_and_storage():
    assert len(DTYPES) == 22
    for name, dtype in DTYPES.items():
        assert dtype.name == name
        assert dtype.storage is None or dtype.storage.itemsize * 8 == dtype.bits
    assert {n for n, d in DTYPES.items() if d.computable} == {"F16", "BF16", "F32", "F64"}


def test_torch_has_the_dtypes_under_these_names_and_sizes():
    import torch

    for dtype in DTYPES.values():
        if dtype.torch_name and dtype.storage is not None:
            assert getattr(torch, dtype.torch_name).itemsize * 8 == dtype.bits
            assert getattr(torch, dtype.torch_name).is_floating_point == dtype.is_float


def test_every_bf16_pattern_becomes_the_float_that_torch_makes_of_it():
    import torch

    theirs = torch.from_numpy(PATTERNS.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(to_float(PATTERNS, "BF16").view(np.uint32), theirs.view(np.uint32))


def test_every_f16_pattern_becomes_the_float_that_torch_makes_of_it():
    import torch

    theirs = torch.from_numpy(PATTERNS.view(np.int16)).view(torch.float16).float().numpy()
    np.testing.assert_array_equal(to_float(PATTERNS.view(np.float16), "F16"), theirs)


@pytest.mark.parametrize(("dtype", "name"), [("BF16", "bfloat16"), ("F16", "float16")])
def test_float32_is_rounded_as_torch_rounds_it(dtype, name):
    import torch

    x = float32_cases()
    ours = from_float(x, dtype).view(np.uint16)
    theirs = torch.from_numpy(x).to(getattr(torch, name)).view(torch.int16).numpy().view(np.uint16)
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(ours[numbers], theirs[numbers])
    assert np.isnan(to_float(from_float(x, dtype), dtype)[~numbers]).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_16_bit_pattern_survives_the_way_there_and_back(dtype):
    raw = PATTERNS.view(DTYPES[dtype].storage)
    numbers = ~np.isnan(to_float(raw, dtype))
    np.testing.assert_array_equal(from_float(to_float(raw, dtype), dtype)[numbers], raw[numbers])


def test_nan_keeps_its_sign_and_never_turns_into_infinity_or_zero():
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000], np.uint32)
    expected = [0x7FC0, 0x7FC0, 0xFFC0, 0xFFC0, 0x7FC0]
    assert from_float(bits.view(np.float32), "BF16").tolist() == expected
    wide = np.array(
        [0x7FF0000000000001, 0x7FFFFFFFFFFFFFFF, 0xFFF0000000000001, 0xFFFFFFFFFFFFFFFF, 0x7FF8 << 48], "u8"
    )
    assert from_float(wide.view(np.float64), "BF16").tolist() == expected


def test_beyond_the_largest_value_lies_infinity():
    x = np.array([3.3895e38, 3.3961e38, 3.3962e38, np.inf, -np.inf, -3.4e38], np.float32)
    assert from_float(x, "BF16").tolist() == [0x7F7F, 0x7F7F, 0x7F80, 0x7F80, 0xFF80, 0xFF80]
    half = from_float(np.array([65519.0, 65520.0, -1e9]), "F16")
    assert half.tolist() == [65504.0, np.inf, -np.inf]
    assert from_float(np.array([1e39]), "F32").tolist() == [np.inf]


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_float64_is_rounded_once(dtype):
    every = to_float(PATTERNS[:32768].view(DTYPES[dtype].storage), dtype)
    positive = every[np.isfinite(every)].astype(np.float64)  # ascending, as the patterns are
    x = float64_cases(positive)
    expected = np.array([exactly_rounded(v, positive) if v > 0 else 0.0 for v in x], np.float32)
    np.testing.assert_array_equal(to_float(from_float(x, dtype), dtype), expected)
    np.testing.assert_array_equal(to_float(from_float(-x, dtype), dtype), -expected)
    twice = to_float(from_float(x.astype(np.float32), dtype), dtype)
    assert (twice != expected).any()  # these values tell one rounding from two


def test_float64_by_way_of_float32_would_be_another_value():
    x = np.array([1 + 2.0**-8 + 2.0**-40])  # just above the tie between two bf16 values, on it in float32
    assert from_float(x, "BF16").tolist() == [0x3F81]
    assert from_float(x.astype(np.float32), "BF16").tolist() == [0x3F80]


def test_a_float64_beyond_float32_is_infinite_in_bf16_and_a_tiny_one_zero():
    x = np.array([1e300, -1e300, 1e-300, -1e-300, 5e-324])
    assert from_float(x, "BF16").tolist() == [0x7F80, 0xFF80, 0, 0x8000, 0]


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_wide_floats_pass_unchanged_in_their_own_type(dtype):
    x = float32_cases()
    x = x[~np.isnan(x)].astype(compute_dtype(dtype))
    raw = from_float(x, dtype)
    assert raw.dtype == DTYPES[dtype].storage
    np.testing.assert_array_equal(raw, x)
    np.testing.assert_array_equal(to_float(raw, dtype), x)
    assert not np.shares_memory(to_float(raw, dtype), raw)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_results_go_to_the_given_arrays_and_the_input_is_left_alone(dtype):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((7, 5)).astype(np.float32)
    before = x.copy()
    out, scratch = np.empty((7, 5), DTYPES[dtype].storage), np.empty((7, 5), np.uint32)
    assert from_float(x, dtype, out, scratch) is out
    np.testing.assert_array_equal(out, from_float(x, dtype))
    np.testing.assert_array_equal(x, before)
    back = np.empty((7, 5), np.float32)
    assert to_float(out, dtype, back) is back
    np.testing.assert_array_equal(back, to_float(out, dtype))


def test_converting_with_given_arrays_allocates_nothing():
    import tracemalloc

    x = np.ones(1 << 20, np.float32)
    out, scratch = np.empty(x.shape, np.uint16), np.empty(x.shape, np.uint32)
    tracemalloc.start()
    from_float(x, "BF16", out, scratch)
    to_float(out, "BF16", x)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_empty_arrays_and_scalars_convert(dtype):
    assert from_float(np.empty((0, 3), np.float32), dtype).shape == (0, 3)
    assert to_float(np.empty((0, 3), DTYPES[dtype].storage), dtype).shape == (0, 3)
    assert to_float(from_float(np.array(1.5, np.float32), dtype), dtype) == 1.5


def test_what_cannot_be_computed_with_is_refused():
    for dtype in ("I64", "F8_E4M3", "F31"):
        with pytest.raises(ValueError, match=dtype):
            to_float(np.zeros(2, np.uint8), dtype)
        with pytest.raises(ValueError, match=dtype):
            from_float(np.zeros(2, np.float32), dtype)
    with pytest.raises(TypeError, match="int64"):
        from_float(np.zeros(2, np.int64), "BF16")
