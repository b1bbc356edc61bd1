"""Equality of stored tensors, byte for byte, and values that are no numbers."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from suture.formats import TensorReader
from suture.formats.safetensors import read_header
from suture.formats.sameness import BLOCK_VALUES, SAMPLE_BYTES, SAMPLES, count_not_finite, same_bytes


def compared(folder, one, other, *, sampled=False):
    save_file({"one": one, "other": other}, folder / "x.safetensors")
    infos = {t.name: t for t in read_header(folder, "x.safetensors").tensors}
    with TensorReader(folder) as reader:
        return same_bytes(reader, infos["one"], reader, infos["other"], sampled=sampled)


N = BLOCK_VALUES // 4 + 3  # a block of bytes, and a little


@pytest.mark.parametrize("at", [0, 1, N // 2, N // 3, N - 1])
def test_one_value_anywhere(tmp_path, at):
    one = np.arange(N, dtype=np.float32)
    other = one.copy()
    assert compared(tmp_path, one, other)
    other[at] += 1
    assert not compared(tmp_path, one, other)


@pytest.mark.parametrize("at", [0, N - 1])
def test_samples_reach_both_ends(tmp_path, at):
    one = np.arange(N, dtype=np.float32)
    other = one.copy()
    other[at] += 1
    assert not compared(tmp_path, one, other, sampled=True)


def test_samples_read_little(tmp_path, monkeypatch):
    read = []
    into = TensorReader.read_into
    monkeypatch.setattr(TensorReader, "read_into", lambda *a: (read.append(len(a[3])), into(*a)))
    one = np.arange(4 * N, dtype=np.float32)
    assert compared(tmp_path, one, one.copy(), sampled=True)
    assert sum(read) == 2 * SAMPLES * SAMPLE_BYTES < one.nbytes


def test_what_the_samples_cover_is_compared_whole(tmp_path):
    one = np.arange(SAMPLES * SAMPLE_BYTES // 4, dtype=np.float32)
    for at in range(0, len(one), 997):
        other = one.copy()
        other[at] += 1
        assert not compared(tmp_path, one, other, sampled=True)


def test_types_and_shapes(tmp_path):
    one = np.zeros((4, 2), np.float32)
    assert not compared(tmp_path, one, one.reshape(2, 4))
    assert not compared(tmp_path, one, one.astype(np.int32))
    assert compared(tmp_path, np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32))
    assert not compared(tmp_path, np.zeros(2, np.float32), -np.zeros(2, np.float32)), "bytes count, not values"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_no_numbers(tmp_path, dtype):
    values = np.ones(BLOCK_VALUES + 5, dtype)
    values[[0, -1]], values[[3, BLOCK_VALUES, 7]] = np.nan, [np.inf, -np.inf, np.inf]
    save_file({"x": values}, tmp_path / "x.safetensors")
    (info,) = read_header(tmp_path, "x.safetensors").tensors
    with TensorReader(tmp_path) as reader:
        assert count_not_finite(reader, info) == (2, 3)
