import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from corpus.folders import n_descriptors
from corpus.headers import HEADERS
from corpus.raw import VALID, entry, packed
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.errors import FormatError, InputError
from suture.formats.dtypes import DTYPES
from suture.formats.reading import TensorReader
from suture.formats.safetensors import MAX_HEADER_BYTES, read_header
from suture.values import Shard, TensorInfo

NUMPY_DTYPES = ["bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32", "float32", "float64", "int64"]
names = st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "t.safetensors"
    path.write_bytes(content)
    return path


def by_reference(path: Path):
    """What the safetensors library says a file holds: name → (dtype, shape, bytes)."""
    from safetensors import deserialize

    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in deserialize(path.read_bytes())}


def by_suture(path: Path):
    content = path.read_bytes()
    header = read_header(path.parent, path.name)
    return {t.name: (t.dtype, t.shape, content[t.begin : t.end]) for t in header.tensors}


def test_a_header_gives_dtypes_shapes_absolute_offsets_and_metadata(tmp_path):
    path = write(tmp_path, VALID)
    start = len(VALID) - 20
    header = read_header(tmp_path, path.name)
    assert header.tensors == (
        TensorInfo("a", "F32", (2,), "t.safetensors", start, start + 8),
        TensorInfo("b", "BF16", (2, 3), "t.safetensors", start + 8, start + 20),
    )
    assert header.shard == Shard("t.safetensors", len(VALID), {"format": "pt"})


def test_tensors_come_by_offset_whatever_the_order_in_the_header(tmp_path):
    table = {"z": entry(offsets=(0, 8)), "empty": entry(shape=(0, 3), offsets=(8, 8)), "a": entry(offsets=(8, 16))}
    write(tmp_path, packed(dict(reversed(table.items())), bytes(16)))
    assert [t.name for t in read_header(tmp_path, "t.safetensors").tensors] == ["z", "empty", "a"]


@pytest.mark.parametrize("name", HEADERS)
def test_malformed(name, tmp_path):
    content, message = HEADERS[name]
    write(tmp_path, content)
    with pytest.raises(FormatError) as caught:
        read_header(tmp_path, "t.safetensors")
    assert message in str(caught.value).replace(str(tmp_path), "")
    assert caught.value.where.startswith(str(tmp_path / "t.safetensors"))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_of_the_reference_is_known_with_its_size(name, tmp_path):
    from safetensors import safe_open

    path = write(tmp_path, packed({"a": entry(name, (8,), (0, DTYPES[name].bits))}, bytes(DTYPES[name].bits)))
    with safe_open(path, "np") as file:
        assert file.get_slice("a").get_dtype() == name
    assert read_header(tmp_path, path.name).tensors[0].n_bytes == DTYPES[name].bits


def test_no_dtype_of_the_reference_is_missing(tmp_path):
    import re

    from safetensors import SafetensorError, safe_open

    path = write(tmp_path, packed({"a": entry("NONE")}, bytes(8)))
    with pytest.raises(SafetensorError) as caught, safe_open(path, "np"):
        pass
    expected = str(caught.value).partition("expected one of")[2]
    assert set(re.findall(r"`(\w+)`", expected)) == set(DTYPES)


@settings(max_examples=150, deadline=None)
@given(
    tensors=st.dictionaries(names, st.tuples(st.sampled_from(NUMPY_DTYPES), shapes), max_size=6),
    metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=3),
)
def test_whatever_the_reference_writes_is_read_alike(tensors, metadata, tmp_path_factory):
    from safetensors.numpy import save_file

    path = tmp_path_factory.mktemp("w") / "t.safetensors"
    save_file({n: np.ones(shape, dtype) for n, (dtype, shape) in tensors.items()}, path, metadata)
    assert by_suture(path) == by_reference(path)
    assert read_header(path.parent, path.name).shard.metadata == (metadata or {})


@settings(max_examples=300, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_refused_or_read_as_the_reference_reads_it(edits, tmp_path_factory):
    content = bytearray(VALID)
    for position, byte in edits:
        content[position] = byte
    check_like_the_reference(bytes(content), tmp_path_factory)


@settings(max_examples=300, deadline=None)
@given(start=st.integers(0, len(VALID)), cut=st.integers(0, 40), insert=st.binary(max_size=12))
def test_a_cut_or_stuffed_file_is_refused_or_read_as_the_reference_reads_it(start, cut, insert, tmp_path_factory):
    check_like_the_reference(VALID[:start] + insert + VALID[start + cut :], tmp_path_factory)


def check_like_the_reference(content: bytes, tmp_path_factory):
    path = write(tmp_path_factory.getbasetemp(), content)
    try:
        ours = by_suture(path)
    except FormatError:
        return
    assert ours == by_reference(path)


def test_a_length_never_dictates_an_allocation(tmp_path):
    write(tmp_path, struct.pack("<Q", MAX_HEADER_BYTES) + b"{" + bytes(1000))
    tracemalloc.start()
    with pytest.raises(FormatError, match="claims 100000000 bytes"):
        read_header(tmp_path, "t.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_header_over_the_cap_is_not_read_although_the_file_has_it(tmp_path):
    path = tmp_path / "t.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{")
        file.truncate(2 * MAX_HEADER_BYTES)  # a sparse file
    with pytest.raises(FormatError, match=f"at most {MAX_HEADER_BYTES}"):
        read_header(tmp_path, path.name)


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "t.safetensors")
    with pytest.raises(InputError, match="not a regular file"):
        read_header(tmp_path, "t.safetensors")


def test_folders_and_missing_files_are_named(tmp_path):
    (tmp_path / "d.safetensors").mkdir()
    for name in ("d.safetensors", "none.safetensors"):
        with pytest.raises(InputError, match=name):
            read_header(tmp_path, name)


def test_names_are_printed_without_their_control_characters(tmp_path):
    write(tmp_path, packed({"\x1b[31mred\n": entry(shape=(3,))}, bytes(8)))
    with pytest.raises(FormatError) as caught:
        read_header(tmp_path, "t.safetensors")
    assert "\x1b" not in str(caught.value)
    assert "\\x1b[31mred\\n" in str(caught.value)


def test_no_descriptor_stays_open(tmp_path):
    write(tmp_path, VALID)
    (tmp_path / "bad.safetensors").write_bytes(VALID[:-1])
    before = n_descriptors()
    for _ in range(3):
        read_header(tmp_path, "t.safetensors")
        with pytest.raises(FormatError):
            read_header(tmp_path, "bad.safetensors")
    assert n_descriptors() == before


def test_values_read_through_the_header_are_those_that_were_saved(tmp_path):
    from safetensors.numpy import save_file

    values = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "i": np.arange(3, dtype=np.int64)}
    save_file(values, tmp_path / "t.safetensors")
    with TensorReader(tmp_path) as reader:
        for tensor in read_header(tmp_path, "t.safetensors").tensors:
            np.testing.assert_array_equal(reader.array(tensor), values[tensor.name])
