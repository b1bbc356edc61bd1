"""Headers and values, read without the code that the merge reads with."""

from __future__ import annotations

import errno
import filecmp
import io
import json

import numpy as np
import pytest
from verification.made import make, shard, write_tensors

from suture.errors import InputError, SutureError
from suture.formats.dtypes import from_float
from suture.values import TensorInfo, View
from suture.verification import hashes, reading


def with_header(path, header: bytes, data: bytes = b""):
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def problem(folder) -> str:
    stored = reading.read_folder(folder)
    assert not stored.tensors
    (found,) = stored.problems
    return found


def entry(**changes) -> bytes:
    return json.dumps({"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} | changes}).encode()


def test_tensors_as_safetensors_writes_them(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.arange(6.0).reshape(2, 3), "b": np.int8([1, 2])}, tmp_path / "model.safetensors", {"k": "v"})
    stored = reading.read_folder(tmp_path)
    assert stored.problems == ()
    a = stored.tensors["a"]
    assert (a.dtype, a.shape, a.file) == ("F64", (2, 3), "model.safetensors")
    assert np.array_equal(reading.floats(reading.raw(tmp_path, a, 8, 32), "F64"), [1, 2, 3])


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"{", b"", "Expecting"),
        (b"[]", b"", "not an object"),
        (b'{"w": 3}', b"", "not the entry of a tensor"),
        (entry(dtype="X9"), b"12", "dtype 'X9'"),
        (entry(shape=[3]), b"12", "2 bytes for U8"),
        (entry(shape=[-2]), b"12", "shape"),
        (entry(data_offsets=[1, 3]), b"123", "begins at byte"),
        (entry(), b"123", "the file at"),
        (entry(), b"1", "the file at"),
        (b'{"w": 1, "w": 2}', b"", "twice"),
        (b"[" * 100_000, b"", "recursion"),
    ],
)
def test_a_malformed_header_is_a_problem_and_no_exception(tmp_path, header, data, words):
    with_header(tmp_path / "model.safetensors", header, data)
    assert words in problem(tmp_path)


@pytest.mark.parametrize("data", [b"", b"1234567", (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_header_longer_than_the_file(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    assert "a header of" in problem(tmp_path)


def test_a_folder_without_weights(tmp_path):
    assert "neither" in problem(tmp_path)


def test_a_file_of_another_name_is_read_when_it_is_planned(tmp_path):
    write_tensors(tmp_path / "weights.safetensors", {"a": ("U8", np.zeros(2, np.uint8))})
    assert set(reading.read_folder(tmp_path, ["weights.safetensors"]).tensors) == {"a"}


@pytest.mark.parametrize("dtype", reading.FLOATS)
def test_values_are_exact(dtype):
    x = np.array([0.0, -0.0, 1.5, -3.25, np.inf, -np.inf, np.nan, 2.0**-14], np.float64)
    raw = from_float(x.astype(np.float64 if dtype == "F64" else np.float32), dtype)
    assert np.array_equal(reading.floats(raw.view(np.uint8), dtype), x, equal_nan=True)


def test_other_dtypes_are_refused():
    with pytest.raises(SutureError, match="F8_E4M3"):
        reading.floats(np.zeros(2, np.uint8), "F8_E4M3")


def test_a_view_is_cut_as_numpy_cuts():
    x = np.arange(24, dtype=np.float32)
    info = TensorInfo("x", "F32", (4, 6), "f", 0, 96)
    view = View.whole(info, (2, 3, 4)).pick(1, 2).cut(1, 1, 3).T
    assert np.array_equal(reading.cut(x.view(np.uint8), "F32", view), x.reshape(2, 3, 4)[:, 2, 1:3].T)


def test_a_file_that_is_too_short_or_gone(tmp_path):
    made = make(tmp_path)
    info = reading.read_folder(made.folder).tensors["model.norm.weight"]
    path = made.folder / shard(2)
    path.write_bytes(path.read_bytes()[: info.begin + 3])
    with pytest.raises(InputError, match="cut short"):
        reading.raw(made.folder, info, 0, info.n_bytes)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        reading.raw(made.folder, info, 0, info.n_bytes)


FAILING = {
    "raw": lambda path: reading.raw(path.parent, TensorInfo("w", "U8", (4,), path.name, 0, 4), 0, 4),
    "beginning": lambda path: reading.beginning(path, 4),
    "same_file": lambda path: reading.same_file(path, path),
    "read_json": reading.read_json,
    "sha256": hashes.sha256,
}


@pytest.mark.parametrize("look", FAILING)
def test_a_disk_that_fails_is_no_verdict_on_the_file(tmp_path, monkeypatch, look):
    path = tmp_path / "file"
    path.write_bytes(b"{}  ")

    def broken(*args, **settings):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(io, "open", broken)
    monkeypatch.setattr(filecmp, "cmp", broken)
    with pytest.raises(InputError, match="cannot be read: Input/output error") as error:
        FAILING[look](path)
    assert isinstance(error.value.__cause__, OSError)
