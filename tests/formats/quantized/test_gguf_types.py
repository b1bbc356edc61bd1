"""Each type of GGUF files, decoded in odd ranges of rows, against the package gguf and against the published layout."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from suture.errors import MissingExtra
from suture.formats.dtypes import from_float
from suture.formats.quantized.gguf import SCHEME, is_decodable, open_rows
from suture.values import NOT_STORED, Packed, TensorInfo

gguf = pytest.importorskip("gguf")
from gguf import GGMLQuantizationType as Type  # noqa: E402

ROWS, COLS = 12, 512
DECODED = [t for t in Type if t.name not in {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K", "Q1_0"}]
RANGES = [(0, ROWS), (0, 1), (ROWS - 1, ROWS), (3, 10), (5, 5), (1, 4)]


def stored(raw):
    """A part that holds the bytes, and how they are read."""

    def read(info, offset, buffer):
        assert 0 <= offset <= offset + buffer.nbytes <= info.n_bytes
        buffer.reshape(-1)[:] = raw.reshape(-1)[offset : offset + buffer.nbytes]

    return TensorInfo("blk.0.x.weight", "U8", (raw.nbytes,), "m.gguf", 7, 7 + raw.nbytes), read


def rows_of(raw, shape, dtype, **settings):
    part, read = stored(raw)
    info = TensorInfo("x", dtype, shape, "model.safetensors", NOT_STORED, NOT_STORED)
    return open_rows(info, Packed("gguf", {"data": part}, settings), read)


def random_blocks(kind, rows=ROWS, cols=COLS):
    """Any bytes: also scales that are infinite, or no numbers."""
    values, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    return np.random.default_rng(0).integers(0, 256, (rows, cols // values * n_bytes), dtype=np.uint8)


def floats_of(raw, kind):
    with np.errstate(all="ignore"):
        return gguf.dequantize(raw, kind)


def bits(x):
    return x.view(f"u{x.dtype.itemsize}")


def test_all_types_are_known():
    assert all(is_decodable(kind.name) for kind in DECODED)
    assert not any(is_decodable(kind.name) for kind in Type if kind not in DECODED)


@pytest.mark.parametrize("kind", DECODED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_rows_are_what_the_package_decodes(kind, dtype):
    raw = random_blocks(kind)
    expected = from_float(floats_of(raw, kind), dtype)
    rows = rows_of(raw, (ROWS, COLS), dtype, type=kind.name)
    for start, stop in RANGES:
        found = rows(start, stop)
        assert (found.shape, found.dtype) == ((stop - start, COLS), expected.dtype)
        same = bits(found) == bits(expected[start:stop])
        # what is stored in the dense dtype is copied, bits of what is no number included
        assert same.all() or (kind.name == dtype and np.isnan(floats_of(raw[start:stop], kind)[~same]).all())


def test_many_rows_are_decoded_in_steps():
    raw = random_blocks(Type.Q4_K, 1200)
    assert np.array_equal(
        bits(rows_of(raw, (1200, COLS), "F32", type="Q4_K")(1, 1199)), bits(floats_of(raw, Type.Q4_K)[1:1199])
    )


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_K, Type.F32, Type.F16], ids=lambda kind: kind.name)
def test_interleaved_heads_are_put_back(kind, heads):
    """convert_hf_to_gguf.py: reshape(heads, 2, size // 2, …).swapaxes(1, 2)."""
    raw = random_blocks(kind)
    original = floats_of(raw, kind)
    permuted = raw.reshape(heads, 2, ROWS // heads // 2, -1).swapaxes(1, 2).reshape(raw.shape)
    rows = rows_of(permuted, (ROWS, COLS), "F32", type=kind.name, permute=heads)
    for start, stop in RANGES:
        assert np.array_equal(bits(rows(start, stop)), bits(original[start:stop]))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_what_was_added_is_taken_away_in_float32(kind, dtype):
    x = np.random.default_rng(0).normal(1, 0.3, COLS).astype(np.float32)
    raw = gguf.quants.quantize(x.reshape(1, -1), kind).view(np.uint8)
    expected = from_float(floats_of(raw, kind) - np.float32(1), dtype)
    found = rows_of(raw, (COLS,), dtype, type=kind.name, plus=1.0)(0, 1)
    assert found.shape == (1, COLS)
    assert np.array_equal(bits(found), bits(expected))


def test_a_tensor_of_three_axes_is_a_matrix_of_its_last_one():
    raw = random_blocks(Type.Q5_0)
    found = rows_of(raw, (3, 4, COLS), "F32", type="Q5_0")(2, 9)
    assert np.array_equal(bits(found), bits(floats_of(raw, Type.Q5_0)[2:9]))


def test_threads_do_not_disturb_each_other():
    raw = random_blocks(Type.IQ2_XS, 64)
    expected, rows = floats_of(raw, Type.IQ2_XS), rows_of(raw, (64, COLS), "F32", type="IQ2_XS", permute=4)
    order = np.arange(64).reshape(4, 8, 2).swapaxes(1, 2).reshape(-1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: rows(k, k + 1), range(64)))
    assert np.array_equal(bits(np.concatenate(found)), bits(expected[order]))


def half(raw):
    return float(np.frombuffer(bytes(raw), "<f2")[0])


def q4_0(block):
    low, high = [b & 15 for b in block[2:]], [b >> 4 for b in block[2:]]
    return [half(block[:2]) * (q - 8) for q in low + high]


def q8_0(block):
    return [half(block[:2]) * (b - 256 if b > 127 else b) for b in block[2:]]


def q5_1(block):
    top = int.from_bytes(block[4:8], "little")
    low, high = [b & 15 for b in block[8:]], [b >> 4 for b in block[8:]]
    return [half(block[:2]) * (q + 16 * (top >> k & 1)) + half(block[2:4]) for k, q in enumerate(low + high)]


def q4_k(block):
    """Eight groups of 32: d · scale · q - dmin · min, scales and mins of six bits in twelve bytes."""
    s, out = block[4:16], []
    for k in range(8):
        scale = s[k] & 63 if k < 4 else s[k + 4] & 15 | s[k - 4] >> 6 << 4
        least = s[k + 4] & 63 if k < 4 else s[k + 4] >> 4 | s[k] >> 6 << 4
        values = block[16 + k // 2 * 32 :][:32]
        for b in values:
            q = b >> 4 if k % 2 else b & 15
            out.append(half(block[:2]) * scale * q - half(block[2:4]) * least)
    return out


def q6_k(block):
    """Two halves of 128, each four groups of 32; scales are signed bytes for 16 values."""
    out = [0.0] * 256
    for n in range(256):
        part, j = n // 128, n % 128
        low = block[part * 64 + j % 64]
        low = low >> 4 if j >= 64 else low & 15
        high = block[128 + part * 32 + j % 32] >> (j // 32 * 2) & 3
        scale = block[192 + n // 16]
        out[n] = half(block[208:210]) * (scale - 256 if scale > 127 else scale) * ((low | high << 4) - 32)
    return out


@pytest.mark.parametrize("formula", [q4_0, q8_0, q5_1, q4_k, q6_k], ids=lambda f: f.__name__)
def test_values_follow_from_the_published_layout(formula):
    kind = Type[formula.__name__.upper()]
    values, _ = gguf.GGML_QUANT_SIZES[kind]
    raw = random_blocks(kind, 4)
    raw.reshape(4 * COLS // values, -1)[:, {Type.Q6_K: 209}.get(kind, 1)] &= 0x3F  # finite scales
    if kind in (Type.Q5_1, Type.Q4_K):
        raw.reshape(4 * COLS // values, -1)[:, 3] &= 0x3F
    expected = np.array([formula(block.tolist()) for block in raw.reshape(4 * COLS // values, -1)], np.float64)
    found = rows_of(raw, (4, COLS), "F32", type=kind.name)(0, 4)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_words_count_the_types():
    assert SCHEME.words({"Q4_K": 7, "F32": 2}) == "GGUF: 7 in Q4_K, 2 in F32"


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match="gguf is not installed"):
        rows_of(np.zeros((1, 34), np.uint8), (1, 32), "F32", type="Q8_0")
