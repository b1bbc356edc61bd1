"""What GPTQ, AWQ and HQQ have in common: codes out of words, values out of codes, blocks of rows."""

from __future__ import annotations

import numpy as np
import pytest

from suture.errors import FormatError
from suture.formats.quantized.affine import Grid, blocks, choice, decoded, difference, fill, spread
from suture.values import TensorInfo

FLOATS = ("F16", "BF16", "F32")
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_the_bits_in_order(bits):
    words = RANDOM.integers(0, 1 << 32, (5, 24), dtype=np.uint32)
    stream = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").reshape(5, -1, bits)
    np.testing.assert_array_equal(spread(words, bits), stream @ (1 << np.arange(bits)))
    np.testing.assert_array_equal(spread(words[:, 6:12], bits), spread(words, bits)[:, 192 // bits : 384 // bits])


def grid(rows, groups, n_codes=16, group=None):
    scales = RANDOM.random((rows, groups), np.float32).astype(np.float16).astype(np.float32)
    return Grid(n_codes, scales, RANDOM.integers(0, n_codes, (rows, groups)).astype(np.float32), difference, group)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("in_order", [True, False])
def test_looked_up_or_computed(dtype, in_order):
    for n_codes, length in ((4, 64), (16, 64), (16, 16), (256, 64), (256, 512)):
        group = None if in_order else RANDOM.permutation(np.repeat(np.arange(4), length))
        all_rows = grid(40, 4, n_codes, group)
        of = np.repeat(np.arange(4), length) if group is None else group
        codes = RANDOM.integers(0, n_codes, (16, 4 * length), dtype=np.uint8)
        zeros, scales = all_rows.zeros[8:24, of], all_rows.scales[8:24, of]
        expected = difference(codes.astype(np.float32), zeros, scales, dtype)
        out = np.empty_like(expected)
        fill(out, codes, all_rows, 8, dtype)
        assert out.tobytes() == expected.tobytes()


def test_blocks_of_rows(monkeypatch):
    info = TensorInfo("m.weight", "F16", (1000, 64), "f", 0, 0)
    codes, all_rows = RANDOM.integers(0, 16, (1000, 64), dtype=np.uint8), grid(1000, 1)
    asked = []

    def some(start, stop):
        asked.append((start, stop))
        return codes[start:stop]

    expected = decoded(info, all_rows, some)(0, 1000)
    assert asked == [(0, 1000)]
    monkeypatch.setattr("suture.formats.quantized.affine.BLOCK", 64 * 33)
    asked.clear()
    assert decoded(info, all_rows, some)(45, 999).tobytes() == expected[45:999].tobytes()
    assert asked[:2] == [(45, 64), (64, 96)]
    assert asked[-1] == (992, 999)
    assert list(blocks(7, 7, 8)) == []


def test_settings():
    known = ("gemm", 4)
    assert choice({"version": "GEMM"}, ("version",), known, None) == "gemm"
    assert choice({"a": None, "b": 4}, ("a", "b"), known, "x") == 4
    assert choice({}, ("a",), known, "x") == "x"
    for wrong in (5, "4", [4], {}, 4.5, False):
        with pytest.raises(FormatError, match="a is"):
            choice({"a": wrong}, ("a", "b"), known, None)
