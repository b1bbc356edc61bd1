"""Factors of an adapter as matrices: a View's tensor, reshaped, indexed and transposed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from suture.formats import TensorReader
from suture.formats.dtypes import to_float
from suture.values import Adapter, View


def cut(array: npt.NDArray[np.generic], view: View) -> npt.NDArray[np.generic]:
    """The view's part of its tensor, as it lies in memory."""
    index = tuple(i if isinstance(i, int) else slice(*i) for i in view.index)
    part = array.reshape(view.shape)[index]
    return part.T if view.transpose else part


def load_view(reader: TensorReader, adapter: Adapter, view: View) -> npt.NDArray[np.floating]:
    """The view as a contiguous float32 array (float64 for F64 tensors)."""
    tensor = adapter.tensors[view.tensor]
    return to_float(np.ascontiguousarray(cut(reader.array(tensor), view)), tensor.dtype)
