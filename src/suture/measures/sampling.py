"""Which rows are looked at, and the open files that they are read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from suture.factors import FactorReader
from suture.formats import TensorReader
from suture.formats.dtypes import DTYPES, Array
from suture.values import Operation, Origin, TensorInfo

STRIPES, STRIPE_ROWS = 16, 8
F64 = np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class Files:
    """The base's and the adapter's tensors, open for reading."""

    base: TensorReader
    tuned: TensorReader
    factors: FactorReader

    def of(self, origin: Origin) -> TensorReader:
        """The reader of one side."""
        return self.base if origin == "base" else self.tuned

    def source(self, op: Operation, rows: slice) -> Array:
        """Rows of the matrix that an operation starts from, in float64."""
        first = op.source.row
        reader = self.of(op.source.origin)
        found: Array = reader.rows(op.source.tensor, op.cols, rows.start + first, rows.stop + first).astype(F64)
        return found


def stripes(n_rows: int, count: int | None = None) -> Iterator[slice]:
    """The sampled rows: all of a small matrix, else runs that are evenly spread, the first and the last row among.

    Args:
        count: of the runs, at least 2; STRIPES unless told.
    """
    count = STRIPES if count is None else count
    if n_rows <= count * STRIPE_ROWS:
        yield slice(0, n_rows)
        return
    for k in range(count):
        start = k * (n_rows - STRIPE_ROWS) // (count - 1)
        yield slice(start, start + STRIPE_ROWS)


def is_matrix(tensor: TensorInfo) -> bool:
    """True for a matrix of numbers that can be computed with."""
    return len(tensor.shape) == 2 and DTYPES[tensor.dtype].computable
