"""Factors read through views are what numpy's own reshape, index and transpose give."""

import numpy as np
import pytest
from execute.made_plans import Pair
from hypothesis import given, settings
from hypothesis import strategies as st

from suture import factors
from suture.factors import FactorReader, cut_rows
from suture.formats import TensorReader
from suture.methods import METHODS
from suture.values import Term, View

F32 = np.dtype(np.float32)
SHAPE = (6, 4, 5)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    pair = Pair(tmp_path_factory.mktemp("adapter"))
    values = np.arange(120, dtype=np.float32)
    pair.add_adapter(
        {
            "t": ("F32", values.reshape(SHAPE)),
            "half": ("BF16", values.reshape(12, 10)),
            "double": ("F64", values.reshape(12, 10)),
            "vector": ("F32", values),
            "scalar": ("F32", np.float32(7)),
        }
    )
    with TensorReader(pair.folder / "adapter") as reader:
        yield pair.adapter, reader


def axis_index(n: int) -> st.SearchStrategy:
    cut = st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda c: c[0] < c[1])
    return st.one_of(st.integers(0, n - 1), cut, st.just((0, n)))


@given(
    index=st.tuples(*map(axis_index, SHAPE)).filter(lambda i: any(isinstance(x, tuple) for x in i)),
    transpose=st.booleans(),
    min_run=st.sampled_from([0, 16, 1 << 20]),
)
@settings(deadline=None)
def test_a_view_is_reshape_index_transpose(tensors, index, transpose, min_run):
    infos, reader = tensors
    view = View("t", SHAPE, index, transpose)
    expected = np.arange(120, dtype=np.float32).reshape(SHAPE)
    expected = expected[tuple(i if isinstance(i, int) else slice(*i) for i in index)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factors, "MIN_RUN_BYTES", min_run)
        found = FactorReader(infos, reader).matrix(view, F32)
    np.testing.assert_array_equal(found, expected.T if transpose else expected)
    assert found.shape == view.size
    assert found.dtype == np.float32
    assert found.flags.c_contiguous


@pytest.mark.parametrize("name", ["half", "double"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_values_come_in_the_type_that_is_asked_for(tensors, name, dtype):
    infos, reader = tensors
    found = FactorReader(infos, reader).matrix(View.whole(infos[name]), np.dtype(dtype))
    np.testing.assert_array_equal(found, np.arange(120).reshape(12, 10))
    assert found.dtype == dtype


def test_a_scalar(tensors):
    infos, reader = tensors
    assert FactorReader(infos, reader).matrix(View.whole(infos["scalar"]), F32) == 7


class CountingReader:
    """A reader that counts the bytes it is asked for."""

    def __init__(self, reader):
        self.reader, self.n_bytes, self.n_whole = reader, 0, 0

    def read_into(self, info, offset, buffer):
        self.n_bytes += buffer.nbytes
        self.reader.read_into(info, offset, buffer)

    def array(self, info):
        self.n_whole += 1
        return self.reader.array(info)


def test_a_range_of_rows_reads_only_these(tensors):
    infos, reader = tensors
    counting = CountingReader(reader)
    FactorReader(infos, counting).matrix(View.whole(infos["t"], (12, 10)).cut(0, 3, 5), F32)
    assert (counting.n_bytes, counting.n_whole) == (2 * 10 * 4, 0)


def test_a_tensor_that_many_views_cut_finely_is_read_once(tensors):
    infos, reader = tensors
    counting = CountingReader(reader)
    source = FactorReader(infos, counting)
    for k in range(5):
        source.matrix(View.whole(infos["t"]).pick(2, k), F32)
    assert (counting.n_bytes, counting.n_whole) == (0, 1)


def test_what_is_kept_is_bounded(tensors, monkeypatch):
    infos, reader = tensors
    monkeypatch.setattr(factors, "KEPT_BYTES", 600)
    counting = CountingReader(reader)
    source = FactorReader(infos, counting)
    for name in ("t", "half", "t"):
        source.matrix(View.whole(infos[name], SHAPE).pick(2, 0), F32)
    assert counting.n_whole == 3


def test_a_term_cut_to_some_rows_gives_these_rows(tensors):
    infos, reader = tensors
    source = FactorReader(infos, reader)
    b, a = View.whole(infos["half"]), View("double", (12, 10), ((0, 10), (0, 10)))
    term = Term("lora", "m", {"B": b, "A": a}, 2.0, start=100, stop=112, rank=10)
    cut = cut_rows(term, METHODS["lora"].axes, 104, 500)
    assert (cut.start, cut.stop, cut.factors["B"].size, cut.factors["A"].size) == (104, 112, (8, 10), (10, 10))
    rows = METHODS["lora"].rows
    whole = rows(np.zeros((12, 10), F32), source.factors(term, F32), 2.0, slice(0, 12))
    part = rows(np.zeros((8, 10), F32), source.factors(cut, F32), 2.0, slice(0, 8))
    np.testing.assert_allclose(part, whole[4:], rtol=1e-6)


def test_trained_rows_of_a_term_that_is_cut(tensors):
    infos, reader = tensors
    term = Term("trainable_tokens", "m", {"D": View("t", (12, 10), ((0, 3), (0, 10)))}, 1.0, 0, 50, 0, (2, 30, 41))
    cut = cut_rows(term, METHODS["trainable_tokens"].axes, 25, 40)
    found = FactorReader(infos, reader).factors(cut, F32)
    changed = METHODS["trainable_tokens"].rows(np.zeros((15, 10), F32), found, 1.0, slice(0, 15))
    assert np.flatnonzero(changed.any(axis=1)).tolist() == [5]
    np.testing.assert_array_equal(changed[5], np.arange(10, 20))
