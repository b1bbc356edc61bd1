"""A weight with its update, quantised as the base has it: blocks of float32 go in, whole parts come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from suture.execute.pieces import Rows
from suture.formats import TensorReader
from suture.formats.dtypes import DTYPES, Array
from suture.formats.quantized.requantize import changing, quantizer_of
from suture.values import Operation


def quantized(
    op: Operation, base: TensorReader, run: Callable[[Rows], Iterator[tuple[int, Array]]]
) -> Mapping[str, Array]:
    """All parts that change of the weight that `op` is a part of, by their names, as they are stored.

    Args:
        run: computes rows: offsets of bytes, and values in float32.
    """
    packed, weight = base.packed[op.part_of], op.weight
    quantizer, parts = quantizer_of(packed), changing(packed)
    assert quantizer is not None
    encode = quantizer.open(replace(op.source.tensor, name=op.part_of), packed, base.read_into)
    found = {role: np.empty(part.shape, DTYPES[part.dtype].storage) for role, part in parts.items()}
    for offset, values in run(Rows(weight, 0, weight.rows)):
        # Zeros, infinities and NaNs are the quantiser's to decide; rules and verification speak of them.
        with np.errstate(all="ignore"):
            made = encode(offset // (4 * weight.cols), values)
        for role, (first, items) in made.items():
            found[role].reshape(-1)[first : first + items.size] = items.reshape(-1)
    return {part.name: found[role] for role, part in parts.items()}
