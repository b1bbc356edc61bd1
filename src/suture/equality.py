"""Whether two updates, or two stored tensors, have the same values: what decides if tied parameters stay tied."""

from __future__ import annotations

from typing import Self

import numpy as np

from suture.factors import FactorReader
from suture.formats import TensorReader
from suture.formats.dtypes import DTYPES
from suture.formats.sameness import same_bytes
from suture.values import Adapter, Checkpoint, TensorInfo, Term, Update

F64 = np.dtype(np.float64)


class Equality:
    """Compares values of the base and of the adapter by reading them; a context manager."""

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter) -> None:
        self._checkpoint, self._adapter = checkpoint, adapter
        self._base, self._tuned = TensorReader.of(checkpoint), TensorReader(adapter.folder)
        self._factors = FactorReader(adapter.tensors, self._tuned)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()
        self._tuned.close()

    def same_stored(self, a: str, b: str) -> bool:
        """True when two tensors of the base hold the same bytes."""
        tensors = self._checkpoint.tensors
        return same_bytes(self._base, tensors[a], self._base, tensors[b])

    def same_tensor(self, a: str, b: str) -> bool:
        """True when two tensors of the adapter hold the same bytes."""
        return self._same_adapter_bytes(self._adapter.tensors[a], self._adapter.tensors[b])

    def same_update(self, a: Update, b: Update) -> bool:
        """True when two updates, applied to the same tensor, give the same values."""
        if a.shape != b.shape or len(a.terms) != len(b.terms) or bool(a.replacement) != bool(b.replacement):
            return False
        if a.replacement and b.replacement and not self._same_adapter_bytes(a.replacement, b.replacement):
            return False
        return all(self._same_term(s, t) for s, t in zip(a.terms, b.terms, strict=True))

    def _same_term(self, s: Term, t: Term) -> bool:
        if (s.method, s.scale, s.start, s.stop, s.rows_changed) != (t.method, t.scale, t.start, t.stop, t.rows_changed):
            return False
        tensors = [self._adapter.tensors[view.tensor] for term in (s, t) for view in term.factors.values()]
        if not all(DTYPES[tensor.dtype].computable for tensor in tensors):
            return False  # another finding says so
        return s.factors.keys() == t.factors.keys() and all(
            np.array_equal(self._factors.matrix(s.factors[name], F64), self._factors.matrix(t.factors[name], F64))
            for name in s.factors
        )

    def _same_adapter_bytes(self, a: TensorInfo, b: TensorInfo) -> bool:
        return same_bytes(self._tuned, a, self._tuned, b)
