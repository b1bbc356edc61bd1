import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from corpus.folders import TENSORS, n_descriptors, sharded_model
from corpus.raw import entry, packed

from suture.errors import FormatError, InputError
from suture.formats import TensorReader, read_checkpoint
from suture.formats.safetensors import read_header

EMBED, MLP, NORM = sorted(TENSORS)


@pytest.fixture
def checkpoint(tmp_path):
    return read_checkpoint(sharded_model(tmp_path))


def test_arrays_have_the_stored_dtype_shape_and_values(checkpoint):
    with TensorReader(checkpoint.folder) as reader:
        for name, info in checkpoint.tensors.items():
            array = reader.array(info)
            assert array.dtype == TENSORS[name].dtype
            np.testing.assert_array_equal(array, TENSORS[name])


def test_bf16_arrays_are_bit_patterns_and_bf16_rows_are_their_values(tmp_path):
    import torch
    from safetensors.torch import save_file

    w = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"w": w}, tmp_path / "t.safetensors")
    (info,) = read_header(tmp_path, "t.safetensors").tensors
    with TensorReader(tmp_path) as reader:
        np.testing.assert_array_equal(reader.array(info), w.view(torch.int16).numpy().view(np.uint16))
        np.testing.assert_array_equal(reader.rows(info, 4, 0, 6), w.float().numpy())
        np.testing.assert_array_equal(reader.rows(info, 8, 1, 3), w.float().numpy().reshape(3, 8)[1:3])


def test_rows_are_float32_or_float64_for_float64(tmp_path):
    from safetensors.numpy import save_file

    values = {"double": np.full((3, 2), 1 / 3), "half": np.full((3, 2), 0.1, np.float16)}
    save_file(values, tmp_path / "t.safetensors")
    with TensorReader(tmp_path) as reader:
        for info in read_header(tmp_path, "t.safetensors").tensors:
            rows = reader.rows(info, 2, 1, 3)
            assert rows.dtype == (np.float64 if info.name == "double" else np.float32)
            np.testing.assert_array_equal(rows, values[info.name][1:3])


def test_a_range_of_bytes_goes_into_any_kind_of_buffer(checkpoint):
    expected = TENSORS[EMBED].tobytes()[20:36]
    array = np.empty((2, 2), np.float32)
    plain = bytearray(16)
    with TensorReader(checkpoint.folder) as reader:
        for buffer in (array, plain, memoryview(plain)):
            reader.read_into(checkpoint.tensors[EMBED], 20, buffer)
            assert bytes(buffer) == expected
        reader.read_into(checkpoint.tensors[EMBED], 128, bytearray())


@pytest.mark.parametrize(("offset", "size"), [(-1, 4), (125, 4), (0, 129), (129, 0)])
def test_a_range_outside_the_tensor_is_the_callers_error(checkpoint, offset, size):
    with TensorReader(checkpoint.folder) as reader, pytest.raises(ValueError, match="which has 128"):
        reader.read_into(checkpoint.tensors[EMBED], offset, bytearray(size))


def test_a_strided_buffer_is_the_callers_error(checkpoint):
    with TensorReader(checkpoint.folder) as reader, pytest.raises(ValueError, match="contiguous"):
        reader.read_into(checkpoint.tensors[EMBED], 0, np.empty((4, 4), np.float32)[:, ::2])


def test_a_file_cut_after_its_header_was_read_names_file_and_tensor(checkpoint):
    info = checkpoint.tensors[NORM]
    os.truncate(checkpoint.folder / info.file, info.end - 1)
    with TensorReader(checkpoint.folder) as reader, pytest.raises(InputError) as caught:
        reader.array(info)
    assert info.file in caught.value.where
    assert NORM in caught.value.where
    assert f"ends at byte {info.end - 1}" in str(caught.value)


def test_a_file_that_vanished_is_an_input_error(checkpoint):
    (checkpoint.folder / checkpoint.tensors[NORM].file).unlink()
    with TensorReader(checkpoint.folder) as reader, pytest.raises(InputError, match="cannot be opened"):
        reader.array(checkpoint.tensors[NORM])


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "", "a\0b", "link.safetensors"])
def test_a_tensor_whose_file_lies_elsewhere_is_refused(checkpoint, file, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "outside.safetensors"
    outside.write_bytes(bytes(200))
    (checkpoint.folder / "link.safetensors").symlink_to(outside)
    (checkpoint.folder.parent / "outside.safetensors").write_bytes(bytes(200))
    with TensorReader(checkpoint.folder) as reader, pytest.raises(FormatError):
        reader.array(replace(checkpoint.tensors[NORM], file=file))


def test_what_cannot_be_computed_with_is_named(tmp_path):
    table = {"q": entry("I8", (2, 4)), "f": entry("F4", (16,), (8, 16))}
    (tmp_path / "t.safetensors").write_bytes(packed(table, bytes(16)))
    q, f = read_header(tmp_path, "t.safetensors").tensors
    with TensorReader(tmp_path) as reader:
        assert reader.array(q).shape == (2, 4)
        with pytest.raises(FormatError, match=r"'q': I8 values cannot be computed with"):
            reader.rows(q, 4, 0, 2)
        with pytest.raises(FormatError, match=r"'f': F4 packs"):
            reader.array(f)


def test_threads_share_one_reader_and_one_descriptor_a_file(checkpoint):
    before = n_descriptors()
    with TensorReader(checkpoint.folder) as reader, ThreadPoolExecutor(8) as pool:
        jobs = [info for info in checkpoint.tensors.values() for _ in range(200)]
        arrays = list(pool.map(reader.array, jobs))
        assert n_descriptors() == before + 2
    for info, array in zip(jobs, arrays, strict=True):
        np.testing.assert_array_equal(array, TENSORS[info.name])
    assert n_descriptors() == before


def test_a_closed_reader_reads_no_more(checkpoint):
    with TensorReader(checkpoint.folder) as reader:
        reader.array(checkpoint.tensors[NORM])
    with pytest.raises(ValueError, match="closed"):
        reader.array(checkpoint.tensors[NORM])


def test_a_read_that_the_system_cuts_short_is_continued(checkpoint, monkeypatch):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:3]], offset))
    with TensorReader(checkpoint.folder) as reader:
        np.testing.assert_array_equal(reader.array(checkpoint.tensors[EMBED]), TENSORS[EMBED])


def test_a_failing_disk_names_file_and_tensor(checkpoint, monkeypatch):
    def fail(fd, buffers, offset):
        raise OSError(5, "Input/output error")

    with TensorReader(checkpoint.folder) as reader:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(InputError, match=rf"{NORM}.*Input/output error"):
            reader.array(checkpoint.tensors[NORM])
