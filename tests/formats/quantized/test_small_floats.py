"""Every code of the small floats, against torch's own types."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suture.formats.dtypes import DTYPES
from suture.formats.quantized.small_floats import nibbles, scaled_nibbles, two_bytes, values_of

FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E8M0")


def bits(values):
    """NaN is NaN, whatever its sign and payload."""
    return np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))


@pytest.mark.parametrize("dtype", FLOAT8)
def test_every_code_of_8_bits(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    theirs = codes.view(getattr(torch, DTYPES[dtype].torch_name)).float().numpy()
    assert values_of(dtype).dtype == np.float32
    assert np.array_equal(bits(values_of(dtype)), bits(theirs))
    assert np.isnan(theirs).sum() == {"F8_E4M3": 2, "F8_E5M2": 6, "F8_E8M0": 1}[dtype]


def test_every_code_of_4_bits():
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    expected = np.array(positive + [-value for value in positive], np.float32)
    expected[8] = -0.0
    assert np.array_equal(bits(values_of("E2M1")), bits(expected))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_two_bytes_at_a_time(dtype):
    codes = np.arange(65536, dtype="<u2")
    assert np.array_equal(
        bits(two_bytes(dtype).view(np.float32)), bits(values_of(dtype)[codes.view(np.uint8)]), equal_nan=True
    )


def test_two_nibbles_at_a_time():
    pairs = nibbles().view(np.float32).reshape(256, 2)
    assert [*pairs[0x2F]] == [-6, 1]
    assert [*pairs[0xF2]] == [1, -6]


def test_nibbles_with_their_scale():
    scales = np.arange(256, dtype=np.float32)
    table = scaled_nibbles(values_of("E2M1"), scales, "F16").view(np.float16).reshape(256, 256, 2)
    assert [*table[3, 0x2F]] == [-18, 3]
    assert [*table[200, 0x21]] == [100, 200]


def test_tables_cannot_be_written():
    for table in (values_of("E2M1"), two_bytes("F8_E4M3"), nibbles()):
        assert not table.flags.writeable
