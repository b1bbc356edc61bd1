"""How far an adapter has moved from where it started: by group and row of the vocabulary, and what stood still."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from suture.formats import TensorReader, read_adapter
from suture.groups import group_of
from suture.values import Adapter, Arch, Movement, TensorInfo

ROWS = 4096  # of a matrix that are compared at a time
WITH_ROWS = ("embeddings", "head", "tokens")


def movements(start: Path, end: Path, arch: Arch, trained: Set[str]) -> tuple[Movement, ...]:
    """Compare the trained tensors of two saved adapters, in blocks of rows.

    moved = ‖θ − θ₀‖ / ‖θ₀‖,   a row or a tensor stands still if not one of its bits has changed
    """
    before, after = read_adapter(start), read_adapter(end)
    groups: dict[str, list[str]] = {}
    for name in sorted(before.tensors.keys() & after.tensors.keys() & trained):
        groups.setdefault(group_of(name, arch), []).append(name)
    found = []
    for group, names in groups.items():
        parts = {name: _compare(before, after, name) for name in names}
        moved = math.sqrt(sum(p[0] for p in parts.values()))
        size = math.sqrt(sum(p[1] for p in parts.values()))
        tables = [parts[n] for n in names if group in WITH_ROWS and len(before.tensors[n].shape) == 2]
        found.append(
            Movement(
                group,
                relative=moved / size if size else None,
                absolute=moved,
                n_rows=sum(p[2] for p in tables),
                n_still_rows=sum(p[3] for p in tables),
                still_tensors=tuple(name for name, p in parts.items() if p[2] == p[3]),
            )
        )
    return tuple(found)


def _compare(before: Adapter, after: Adapter, name: str) -> tuple[float, float, int, int]:
    """‖θ − θ₀‖², ‖θ₀‖², rows, and rows that stood still."""
    a, b = before.tensors[name], after.tensors[name]
    moved = size = 0.0
    n_rows = still = 0
    with TensorReader(before.folder) as old, TensorReader(after.folder) as new:
        for x, y in zip(_blocks(old, a), _blocks(new, b), strict=True):
            moved += float(np.square(y - x, dtype=np.float64).sum())
            size += float(np.square(x, dtype=np.float64).sum())
            n_rows += len(x)
            bits = f"u{x.itemsize}"  # a NaN stands still, and -0 is not 0
            still += int((x.view(bits) == y.view(bits)).all(axis=1).sum())
    return moved, size, n_rows, still


def _blocks(reader: TensorReader, info: TensorInfo) -> Iterator[npt.NDArray[np.floating[Any]]]:
    """The tensor as a matrix, in blocks of rows; a vector is a column."""
    n_rows = info.shape[0] if info.shape else 1
    columns = info.n_values // n_rows if n_rows else 0
    for start in range(0, n_rows, ROWS):
        yield reader.rows(info, columns, start, min(start + ROWS, n_rows))
