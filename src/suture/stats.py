"""What the adapter's values tell: read once, in blocks, before a merge starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from suture.formats import TensorReader
from suture.formats.dtypes import DTYPES
from suture.formats.sameness import finite_blocks
from suture.values import Adapter, Checkpoint, TensorInfo

BLOCK_VALUES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts over one tensor."""

    n_values: int
    n_nan: int
    n_inf: int
    n_nonzero: int
    max_abs: float  # of the finite values


def adapter_stats(adapter: Adapter) -> Mapping[str, Stats]:
    """Statistics of every floating-point tensor of the adapter."""
    with TensorReader(adapter.folder) as reader:
        return {
            name: _stats(reader, tensor)
            for name, tensor in sorted(adapter.tensors.items())
            if DTYPES[tensor.dtype].computable
        }


def _stats(reader: TensorReader, tensor: TensorInfo) -> Stats:
    n_nan = n_inf = n_nonzero = 0
    max_abs = 0.0
    for x, nan, infinite in finite_blocks(reader, tensor):
        n_nan, n_inf = n_nan + nan, n_inf + infinite
        n_nonzero += int(np.count_nonzero(x))
        max_abs = max(max_abs, float(np.abs(x).max(initial=0.0)))
    return Stats(tensor.n_values, n_nan, n_inf, n_nonzero, max_abs)


def frozen_copies(checkpoint: Checkpoint, adapter: Adapter, pairs: Mapping[str, str]) -> Mapping[str, float]:
    """For each frozen copy of a base matrix in the adapter: the share of rows that are bit-equal to the base's.

    Args:
        pairs: adapter tensor (`….base_layer.weight`) → base tensor of the same columns. Rows beyond the shorter one
            of the two are not compared; neither are pairs of different dtypes, which have no entry in the result.
    """
    shares = {}
    with TensorReader.of(checkpoint) as base, TensorReader(adapter.folder) as copies:
        for name, base_name in sorted(pairs.items()):
            copy, original = adapter.tensors[name], checkpoint.tensors[base_name]
            if copy.dtype == original.dtype and copy.shape[1:] == original.shape[1:] and len(copy.shape) == 2:
                shares[name] = _equal_rows(copies, copy, base, original)
    return shares


def _equal_rows(copies: TensorReader, copy: TensorInfo, base: TensorReader, original: TensorInfo) -> float:
    n_rows, cols = min(copy.shape[0], original.shape[0]), copy.shape[1]
    step = max(1, BLOCK_VALUES // max(cols, 1))
    equal = 0
    for start in range(0, n_rows, step):
        stop = min(start + step, n_rows)
        same = copies.rows(copy, cols, start, stop) == base.rows(original, cols, start, stop)
        equal += int(same.all(axis=1).sum())
    return equal / n_rows if n_rows else 1.0
