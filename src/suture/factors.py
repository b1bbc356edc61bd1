"""Factors of terms: the adapter's tensors, cut as the views say, as float arrays."""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from suture.formats import TensorReader
from suture.formats.dtypes import DTYPES, Array, to_float
from suture.methods.base import Axis
from suture.values import TensorInfo, Term, View

KEPT_BYTES = 32 << 20
MIN_RUN_BYTES = 4096


class FactorReader:
    """Reads factors. One for all workers: tensors that many views cut finely are kept, up to KEPT_BYTES."""

    def __init__(self, tensors: Mapping[str, TensorInfo], reader: TensorReader) -> None:
        self._tensors = tensors
        self._reader = reader
        self._kept: OrderedDict[str, Array] = OrderedDict()
        self._lock = threading.Lock()

    def factors(self, term: Term, dtype: np.dtype[Any]) -> dict[str, Array]:
        """The term's factors by short name, C-contiguous, and `rows`: the rows it changes (int64)."""
        found = {name: self.matrix(view, dtype) for name, view in sorted(term.factors.items())}
        found["rows"] = np.asarray(term.rows_changed, np.int64)
        return found

    def matrix(self, view: View, dtype: np.dtype[Any]) -> Array:
        """The values of a view, of shape `view.size`."""
        info = self._tensors[view.tensor]
        raw = self._cut(info, view)
        raw = raw[tuple(0 if isinstance(i, int) else slice(None) for i in view.index)]
        values = to_float(np.ascontiguousarray(raw.T if view.transpose else raw), info.dtype)
        return values.astype(dtype, copy=False)

    def _cut(self, info: TensorInfo, view: View) -> Array:
        """The view's range of each axis of `view.shape`; an int counts as a range of one.

        Long runs of bytes are read on their own; for short ones the whole tensor is read and kept.
        """
        ranges = [(i, i + 1) if isinstance(i, int) else i for i in view.index]
        cut = [axis for axis, (a, b) in enumerate(ranges) if (a, b) != (0, view.shape[axis])]
        shape = tuple(b - a for a, b in ranges)
        last = cut[-1] if cut else 0
        n_runs, run = math.prod(shape[:last]), math.prod(shape[last:])
        item = DTYPES[info.dtype].bits // 8
        if n_runs > 1 and run * item < MIN_RUN_BYTES:
            return self._whole(info).reshape(view.shape)[tuple(slice(a, b) for a, b in ranges)]
        strides = [math.prod(view.shape[axis + 1 :]) for axis in range(len(view.shape))]
        out = np.empty((n_runs, run), DTYPES[info.dtype].storage)
        for k, at in enumerate(itertools.product(*(range(a, b) for a, b in ranges[:last]))):
            first = sum(i * s for i, s in zip(at, strides, strict=False))
            if ranges:
                first += ranges[last][0] * strides[last]
            self._reader.read_into(info, first * item, out[k])
        return out.reshape(shape)

    def _whole(self, info: TensorInfo) -> Array:
        with self._lock:
            if info.name not in self._kept:
                self._kept[info.name] = self._reader.array(info)
            self._kept.move_to_end(info.name)
            while len(self._kept) > 1 and sum(a.nbytes for a in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return self._kept[info.name]


def cut_rows(term: Term, axes: Mapping[str, tuple[Axis, ...]], start: int, stop: int) -> Term:
    """The part of a term that falls into rows start:stop of the tensor.

    Args:
        axes: those of the term's method; factors that follow the rows are cut with them.
    """
    first, last = max(start - term.start, 0), min(stop, term.stop) - term.start
    factors = {
        name: view.cut(axes[name].index("rows"), first, last) if "rows" in axes.get(name, ()) else view
        for name, view in term.factors.items()
    }
    return replace(
        term,
        factors=factors,
        start=term.start + first,
        stop=term.start + last,
        rows_changed=tuple(row - first for row in term.rows_changed),
    )
