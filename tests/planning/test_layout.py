"""Row blocks and the bytes of output files."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suture.planning import layout
from suture.values import Operation, Source, TensorInfo


@given(st.integers(1, 5000), st.integers(1, 1 << 20))
def test_blocks_cover_all_rows_once_and_none_is_small(rows, cols):
    size = layout.block_rows(rows, cols)
    found = list(layout.blocks(rows, size))
    assert [b.start for b in found] == [0, *(b.stop for b in found[:-1])]
    assert found[-1].stop == rows
    assert all(b.stop - b.start >= min(rows, layout.MIN_BLOCK_ROWS) for b in found)
    assert all(b.stop - b.start < 2 * size for b in found)


def test_no_rows_no_blocks():
    assert list(layout.blocks(0, 1)) == []


def operation(name: str, dtype: str, *shape: int, file: str = "model.safetensors") -> Operation:
    info = TensorInfo(name, dtype, shape, file, 0, layout.n_bytes(dtype, shape))
    cols = shape[-1] if len(shape) > 1 else 1
    return Operation(name, "copy", Source("base", info), (), dtype, shape, cols, 1, file, 0, 0)


def test_the_safetensors_library_reads_the_header(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    laid = layout.lay_out(
        [operation("ä.weight", "BF16", 3, 5), operation("b", "F32", 7), operation("empty", "F32", 0, 4)],
        {"model.safetensors": {"format": "pt"}},
    )
    (file,) = laid.files
    path = tmp_path / file.name
    path.write_bytes(file.header.encode("latin-1") + bytes(file.n_bytes - len(file.header)))
    with safetensors.safe_open(path, framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert set(opened.keys()) == {"ä.weight", "b", "empty"}
        assert opened.get_slice("ä.weight").get_shape() == [3, 5]
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert (8 + length) % layout.HEADER_ALIGNMENT == 0
    assert laid.operations[0].begin == 8 + length


def test_tensors_keep_their_order_within_a_file_and_files_are_sorted():
    laid = layout.lay_out(
        [operation("z", "F32", 2, file="b"), operation("a", "F32", 2, file="b"), operation("m", "F32", 2, file="a")],
        {"b": {}, "a": {}},
    )
    assert [op.tensor for op in laid.operations] == ["m", "z", "a"]
