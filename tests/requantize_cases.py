"""Weights quantised anew, run by run, and put together."""

from __future__ import annotations

import numpy as np

from suture.formats.quantized.requantize import changing, dequantized, quantizer_of

W = "m.q_proj.weight"


def quantized(given, scheme, values=None, name=W):
    """All new parts of a weight, put together from runs of a few granules; of its own values unless given others."""
    one = scheme.find(given)[name]
    info, packed = one.info, one.packed
    quantizer = quantizer_of(packed)
    n_rows = info.n_values // info.shape[-1]
    if values is None:
        exact = type(info)(info.name, "F32", info.shape, info.file, info.begin, info.end)
        values = scheme.open(exact, packed, given.read)(0, n_rows)
    encode, granule = quantizer.open(info, packed, given.read), quantizer.granule(info, packed)
    pieces: dict[str, list] = {}
    for start in range(0, n_rows, 2 * granule):
        rows = np.ascontiguousarray(values[start : start + 2 * granule])
        parts = encode(start, rows)
        for role, (first, items) in parts.items():
            assert first == sum(x.size for x in pieces.get(role, [])), (role, start)
            pieces.setdefault(role, []).append(items.reshape(-1))
        again = dequantized(info, packed, given.read, len(rows), parts)
        assert again.shape == rows.shape
    found = {role: np.concatenate(items) for role, items in pieces.items()}
    assert {role: part.n_values for role, part in changing(packed).items()} == {r: x.size for r, x in found.items()}
    return found, values, info, packed


def same_values(given, scheme, name=W):
    """D(Q(D(x))) = D(x)."""
    parts, values, info, packed = quantized(given, scheme, name=name)
    shaped = {r: (0, x.reshape(packed.parts[r].shape)) for r, x in parts.items()}
    again = dequantized(info, packed, given.read, len(values), shaped)
    return np.array_equal(again, values)
