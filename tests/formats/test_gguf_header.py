"""The header of GGUF files: read as the package gguf does, and refused, in little time and memory, where it lies."""

import math
import resource
import struct
import time

import numpy as np
import pytest

from suture.errors import FormatError, SutureError
from suture.formats.gguf import header as module
from suture.formats.gguf.header import read_header

gguf = pytest.importorskip("gguf")


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name, kind, raw):
    return text(name) + struct.pack("<I", kind) + raw


def strings(name, values):
    return key(name, 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values)))


def entry(name="a", shape=(32,), kind=0, offset=0, n_axes=None):
    axes = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        text(name)
        + struct.pack("<I", len(shape) if n_axes is None else n_axes)
        + axes
        + struct.pack("<IQ", kind, offset)
    )


def file_of(path, keys=(), entries=(), *, data=1024, version=3, magic=b"GGUF", counts=None):
    n_tensors, n_keys = counts or (len(entries), len(keys))
    head = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(entries)
    path.write_bytes(head + bytes(-len(head) % 32 + data))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.gguf"


def test_keys_and_tensors_are_those_that_the_package_reads(path):
    writer = gguf.GGUFWriter(path, "llama")
    values = {"b": True, "i": -3, "f": 0.25, "t": "ünï"}
    writer.add_bool("b", True)
    writer.add_int32("i", -3)
    writer.add_float32("f", 0.25)
    writer.add_string("t", "ünï")
    writer.add_uint64("u", 1 << 40)
    writer.add_array("few", [1, 2, 3])
    writer.add_array("many", list(range(5000)))
    writer.add_array("words", ["a", "", "▁b"])
    tensors = {"one": np.arange(6, dtype=np.float32).reshape(2, 3), "two": np.ones((4, 64), np.float32)}
    writer.add_tensor("one", tensors["one"])
    quantised = gguf.quants.quantize(tensors["two"], gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("two", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    found = read_header(path, "model.gguf")
    assert {name: found.get(name) for name in values} == values
    assert (found.get("u"), found.get("few"), found.get("general.architecture")) == (1 << 40, [1, 2, 3], "llama")
    assert [(found.keys[n].value, found.keys[n].n_items, found.keys[n].raw) for n in ("many", "words")] == [
        (None, 5000, b""),
        (None, 3, b""),
    ]
    reader = gguf.GGUFReader(path)
    assert {(t.name, t.type, t.shape, t.file, t.begin, t.n_bytes) for t in found.tensors} == {
        (t.name, t.tensor_type.name, tuple(t.shape.tolist()[::-1]), "model.gguf", t.data_offset, t.n_bytes)
        for t in reader.tensors
    }
    raw = path.read_bytes()
    assert all(raw.count(k.raw) == 1 for k in found.keys.values() if k.raw)


def test_tensors_are_in_the_order_of_their_bytes(path):
    file_of(path, entries=[entry("b", offset=128), entry("a", offset=256), entry("c")])
    assert [t.name for t in read_header(path, "m").tensors] == ["c", "b", "a"]


def test_alignment_is_what_the_file_says(path):
    file_of(path, [key("general.alignment", 4, struct.pack("<I", 64))], [entry()])
    assert read_header(path, "m").tensors[0].begin % 64 == 0


HOSTILE = {
    "empty": (lambda p: p.write_bytes(b""), "begins with"),
    "another format": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(99)), "begins with"),
    "git lfs": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid"), "Git LFS pointer"),
    "version 1": (lambda p: file_of(p, version=1), "version 1"),
    "big-endian": (lambda p: file_of(p, version=3 << 24), "big-endian"),
    "many tensors": (lambda p: file_of(p, counts=(1 << 60, 0)), "claims 1152921504606846976 tensors"),
    "many keys": (lambda p: file_of(p, counts=(0, 1 << 40)), "claims 1099511627776 keys"),
    "fewer tensors": (lambda p: file_of(p, counts=(20_000, 0)), "axes|file has"),
    "long name": (lambda p: file_of(p, [struct.pack("<Q", 1 << 62)]), "name of a key of 4611686018427387904 bytes"),
    "long text": (lambda p: file_of(p, [key("k", 8, struct.pack("<Q", 1 << 50))]), "value of 'k' of"),
    "text past the end": (lambda p: file_of(p, [key("k", 8, struct.pack("<Q", 9000))]), "file has"),
    "not UTF-8": (lambda p: file_of(p, [key("k", 8, text(b"\xff\xfe"))]), "not UTF-8"),
    "unknown type": (lambda p: file_of(p, [key("k", 77, b"")]), "type of 'k' is 77"),
    "array of arrays": (lambda p: file_of(p, [key("k", 9, struct.pack("<IQ", 9, 3))]), "array of type 9"),
    "array past the end": (lambda p: file_of(p, [key("k", 9, struct.pack("<IQ", 4, 1 << 61))]), "file has"),
    "short array past the end": (lambda p: file_of(p, [key("k", 9, struct.pack("<IQ", 12, 4000))]), "file has"),
    "many strings": (lambda p: file_of(p, [key("k", 9, struct.pack("<IQ", 8, 1 << 61))]), "arrays of more than"),
    "strings past the end": (lambda p: file_of(p, [key("k", 9, struct.pack("<IQ", 8, 2_000_000))]), "file has"),
    "long string": (lambda p: file_of(p, [key("k", 9, struct.pack("<IQQ", 8, 1, 1 << 60))]), "string of"),
    "key twice": (lambda p: file_of(p, [key("k", 0, b"\1"), key("k", 0, b"\2")]), "key 'k' is there twice"),
    "alignment 0": (lambda p: file_of(p, [key("general.alignment", 4, bytes(4))]), "alignment is '0'"),
    "alignment 48": (lambda p: file_of(p, [key("general.alignment", 4, struct.pack("<I", 48))]), "alignment is '48'"),
    "alignment of text": (lambda p: file_of(p, [key("general.alignment", 8, text("32"))]), "alignment is '32'"),
    "no axes": (lambda p: file_of(p, entries=[entry(shape=())]), "has 0 axes"),
    "many axes": (lambda p: file_of(p, entries=[entry(n_axes=1 << 31)]), "has 2147483648 axes"),
    "no rows": (lambda p: file_of(p, entries=[entry(shape=(32, 0))]), r"shape \[0, 32\]"),
    "axes that overflow": (lambda p: file_of(p, entries=[entry(shape=(1 << 62, 1 << 62))]), "has the shape"),
    "half a block": (lambda p: file_of(p, entries=[entry(shape=(33,), kind=8)]), "whole blocks of 32 Q8_0"),
    "type unknown": (lambda p: file_of(p, entries=[entry(kind=4)]), "is of type 4"),
    "offset odd": (lambda p: file_of(p, entries=[entry(offset=1)]), "begins at 1 of the data"),
    "offset past the end": (lambda p: file_of(p, entries=[entry(offset=1 << 63)]), "file has"),
    "size past the end": (lambda p: file_of(p, entries=[entry(shape=(1 << 40,))]), "file has"),
    "data cut": (lambda p: file_of(p, entries=[entry()], data=100), "file has"),
    "overlap": (lambda p: file_of(p, entries=[entry("a"), entry("b", offset=64)]), "'b' overlaps 'a'"),
    "tensor twice": (lambda p: file_of(p, entries=[entry("a"), entry("a", offset=128)]), "'a' is there 2 times"),
    "much to keep": (lambda p: file_of(p, [key(f"k{i}", 8, text("x" * 900_000)) for i in range(6)]), "long values"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_header_that_lies_is_refused(path, case):
    make, match = HOSTILE[case]
    make(path)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(FormatError, match=match) as error:
        read_header(path, "m")
    assert str(path) in str(error.value)
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_as_many_strings_as_are_allowed_take_no_second(path):
    words = struct.pack("<Q", 4) + b"abcd"
    n = module.MAX_STRINGS
    file_of(path, [key("k", 9, struct.pack("<IQ", 8, n) + words * n)])
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_header(path, "m").keys["k"].n_items == n
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


def small(path):
    keys = [key("general.alignment", 4, struct.pack("<I", 32)), strings("words", ["ab", "c"]), key("n", 10, bytes(8))]
    return file_of(path, keys, [entry("a", (32, 2), 8), entry("b", (3,), 0, 96)], data=128)


def test_a_file_cut_anywhere_is_refused(path):
    raw = small(path).read_bytes()
    for n_bytes in range(len(raw) - 20):
        path.write_bytes(raw[:n_bytes])
        with pytest.raises(FormatError):
            read_header(path, "m")


def test_a_byte_changed_anywhere_is_refused_or_stays_inside_the_file(path):
    raw = small(path).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(4000):
        changed = bytearray(raw)
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(0, len(raw) - 128)] = rng.choice([0, 1, 4, 8, 9, 127, 255, rng.integers(256)])
        path.write_bytes(changed)
        try:
            found = read_header(path, "m")
        except SutureError:
            continue
        for tensor in found.tensors:
            assert 0 <= tensor.begin <= tensor.end <= len(raw)
            values, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]]
            assert tensor.n_bytes == math.prod(tensor.shape) // values * n_bytes
