"""Parts of a weight that was quantised after its update, against what the quantiser makes of base + adapter.

Runs of rows that the quantiser can take on their own are recomputed in float64, rounded to float32, and quantised by
the same library. What the merge gave it is another float32 of the same exact value, some units in the last place away.
So nearly all that is stored must be equal, and the rest a neighbour:

    a code                    another one than the recomputed stands for a value that is about as near to the exact one
                              (SLACK of the distance of the two codes), as only values between two codes go either way
    a scale, a whole number   by one off: of nested scales, of powers of two, of 8-bit floats that are not negative
    a scale, a float          2^-10 of it off, a step of float16, which LLM.int8 takes the largest value through

At most SHARE of the items (and ALWAYS) may be such neighbours. Floats count as one when they are farther off than
2^-13, which is what float32 can make of DoRA's norms. A missing update, another scale or another layer's weight moves
whole blocks: their scales, and a share of the codes that grows with the update.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from suture.formats.quantized.base import Parts, Quantizer
from suture.formats.quantized.requantize import changing, dequantized, quantizer_of
from suture.values import Operation, Packed, TensorInfo, TensorVerdict
from suture.verification import looks, reading
from suture.verification.expect import exact_rows, walk
from suture.verification.judge import Subject, Tally
from suture.verification.reading import Floats

Items: TypeAlias = npt.NDArray[Any]  # of a part, in the type that they are stored in

SHARE, ALWAYS = 1e-3, 2
SLACK = 0.1
STEP, EQUAL = 2.0**-10, 2.0**-13  # of a scale
FULL_VALUES = 1 << 20
_DRAWS = 3


def compare_part(subject: Subject, *, full: bool) -> Tally:
    """Items of a part that the update does not explain."""
    op = subject.operation
    weight, packed = op.weight, subject.inputs.decoder.packed[op.part_of]
    quantizer = quantizer_of(packed)
    assert quantizer is not None
    role = next(role for role, part in changing(packed).items() if part.name == op.tensor)
    info = replace(op.source.tensor, name=op.part_of)
    encode = quantizer.open(info, packed, subject.inputs.decoder.read)
    tally, n_other = Tally(), 0
    with np.errstate(all="ignore"):
        for block in walk(weight, subject.inputs, _looks(weight, quantizer, info, packed, full=full)):
            exact = exact_rows(weight, block.terms, subject.inputs, block.rows)
            parts = encode(block.rows.start, exact.astype(np.float32))
            first, wanted = parts[role]
            stored = _items(subject, first, wanted)
            other, wrong = _scales(stored, wanted, op.dtype)
            if role == "codes":
                other, wrong = _codes(subject, info, packed, parts, stored, exact)
            n_other += other
            same = tally.same and np.array_equal(stored, _before(subject, packed.parts[role], first, wanted))
            tally += Tally(wanted.size, wrong, same=same, moves=bool(op.terms), n_bytes=wanted.nbytes)
    n_wrong = n_other if n_other > ALWAYS + SHARE * tally.n_checked else tally.n_wrong
    return replace(tally, n_wrong=n_wrong, moves=tally.same and tally.moves)


def verdict(subject: Subject, tally: Tally) -> TensorVerdict:
    """What is wrong with a part."""
    words = f"{tally.n_wrong} of {tally.n_checked} looked-at items are not what {subject.operation.part_of} with its "
    words += "update is quantised to"
    if tally.same:
        words = "the update is missing: this tensor is the base's"
    status = "unchanged" if tally.same else "wrong"
    name = subject.operation.tensor
    return TensorVerdict(name, status, tally.n_wrong, tally.n_checked, tally.max_error, None, words)  # type: ignore[arg-type]


def _looks(weight: Operation, quantizer: Quantizer, info: TensorInfo, packed: Packed, *, full: bool) -> Iterable[slice]:
    """Runs of whole granules: all, or the first, the last and some that are drawn from the weight's name."""
    granule, rows = quantizer.granule(info, packed), weight.rows
    values = FULL_VALUES if full else looks.LOOK_VALUES
    size = granule * max(1, values // (granule * weight.cols))
    n = -(-rows // size)
    numbers = set(range(n)) if full else {0, n - 1, *(looks.draw(weight.tensor, k, n) for k in range(_DRAWS))}
    if not full:
        terms = weight.terms if len(weight.terms) <= looks.MAX_TERMS else ()
        numbers |= {(t.start + looks.draw(weight.tensor, k, t.stop - t.start)) // size for k, t in enumerate(terms)}
    return (slice(k * size, min((k + 1) * size, rows)) for k in sorted(numbers))


def _items(subject: Subject, first: int, like: Items) -> Items:
    """As many items of the part in the folder, as they are stored."""
    size = like.dtype.itemsize
    data = reading.raw(subject.folder, subject.found, first * size, first * size + like.nbytes)
    return data.view(like.dtype).reshape(like.shape)


def _before(subject: Subject, part: TensorInfo, first: int, like: Items) -> Items:
    """The same of the base."""
    size = like.dtype.itemsize
    data = reading.raw(subject.inputs.base, part, first * size, first * size + like.nbytes)
    return data.view(like.dtype).reshape(like.shape)


def _scales(stored: Items, wanted: Items, dtype: str) -> tuple[int, int]:
    """How many items are others, and how many are too far off."""
    if dtype in reading.FLOATS:
        a, b = (reading.floats(x.reshape(-1).view(np.uint8), dtype) for x in (stored, wanted))
        off = np.where((stored == wanted).reshape(-1), 0.0, np.abs(a - b))
        return int((~(off <= EQUAL * np.abs(b))).sum()), int((~(off <= STEP * np.abs(b))).sum())
    steps = np.abs(stored.astype(np.int64) - wanted.astype(np.int64))
    return int((steps > 0).sum()), int((steps > 1).sum())


def _codes(
    subject: Subject, info: TensorInfo, packed: Packed, parts: Parts, stored: Items, exact: Floats
) -> tuple[int, int]:
    """How many items are others, and how many values the recomputed codes are clearly nearer to."""
    first, wanted = parts["codes"]
    other = int((stored != wanted).sum())
    if not other:
        return 0, 0
    read, n_rows = subject.inputs.decoder.read, len(exact)
    here = dequantized(info, packed, read, n_rows, {**parts, "codes": (first, stored)}).astype(np.float64)
    right = dequantized(info, packed, read, n_rows, parts).astype(np.float64)
    allowed = np.abs(right - exact) + SLACK * np.abs(here - right)
    return other, int((np.abs(here - exact) > allowed).sum())
