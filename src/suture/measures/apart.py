"""How far weights that were quantised in training are from the 16-bit ones, beside how far the adapter moves them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from suture.measures.moves import Move
from suture.measures.sampling import F64, Files, stripes
from suture.values import Operation, Packed


@dataclass(frozen=True, slots=True)
class Apart:
    """One weight of 16 bits that was quantised in training, on its sampled rows. Norms are over those together."""

    tensor: str
    base: float  # ‖W‖
    quantized: float  # ‖D(Q(W)) − W‖
    update: float  # ‖ΔW‖

    @property
    def share(self) -> float:
        """‖D(Q(W)) − W‖ / ‖W‖; 0 where W is all zero."""
        return self.quantized / self.base if self.base else 0.0


def apart(
    operations: Iterable[Operation], packed: Mapping[str, Packed], moves: Iterable[Move], files: Files
) -> Iterable[Apart]:
    """Measure the weights among these that have an original."""
    updates = {move.tensor: move.update for move in moves}
    for op in operations:
        source = packed.get(op.source.tensor.name)
        if source is None or "weight" not in source.parts or op.why == "untie":
            continue
        original, base, distance = source.parts["weight"], 0.0, 0.0
        for rows in stripes(op.rows):
            w = files.base.rows(original, op.cols, rows.start, rows.stop).astype(F64)
            base += float(np.square(w).sum())
            distance += float(np.square(files.source(op, rows) - w).sum())
        yield Apart(op.tensor, base**0.5, distance**0.5, updates.get(op.tensor, 0.0))
