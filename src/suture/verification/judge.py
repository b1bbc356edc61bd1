"""One tensor of the merged model against what base + adapter gives there.

**The rule for a value.** Let x be the exact value in float64 and E the proven bound on float32 arithmetic
(`bounds`). A stored value is right when it is within ½ ulp(|x| + E) + E of x: the rounding of something
that one float32 evaluation of the formula may give. ulp is that of the dtype in the file.

**Rounded twice.** Other tools round more often: the update to 16 bits, then the sum. With u the relative error of one
rounding in the coarsest dtype that took part (source, factors, file), and D the size of the numbers that the update is
summed from, a value is let pass within

    ½ ulp(|x| + T) + T        T = E + 4u · D  (+ u · |x| where the source is finer than the file)

four roundings being those of the two factors, their product and the scaled product; ulp is that of the coarser of
source and file. Such values are counted and told. They are wrong in a merge that claims one rounding (`strict`).

**Rounded at random.** Where the plan says so (`Operation.seed`), the bits that decided are computed anew, and a value
is right when rounding with these bits makes it of some number within E of x. Other bits are found: for an update of a
tenth of an ulp they decide otherwise for about every fifth value. Nothing else is let pass there.

**Copies** must have the bytes of their source; where the file has another float dtype, one rounding to that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suture import noise
from suture.values import Operation, TensorInfo, TensorVerdict
from suture.verification import bounds, exact, looks, reading
from suture.verification.expect import Block, Expected, Inputs, exact_rows, expect, source_bytes, touched, walk
from suture.verification.reading import Bytes, Floats
from suture.verification.rounding import FLOAT32_UNIT, FORMATS, Mask, agrees, agrees_at_random


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged: the plan's operation, the inputs, and the tensor found in the folder."""

    operation: Operation
    inputs: Inputs
    folder: Path
    found: TensorInfo


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted.

    `max_error` is the largest |stored − exact|; `same`: no byte differs from the source's; `moves`: then, some should;
    `n_bytes` of the file were looked at.
    """

    n_checked: int = 0
    n_wrong: int = 0
    n_twice: int = 0
    max_error: float = 0.0
    same: bool = True
    moves: bool = False
    n_bytes: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.n_checked + other.n_checked,
            self.n_wrong + other.n_wrong,
            self.n_twice + other.n_twice,
            max(self.max_error, other.max_error),
            self.same and other.same,
            self.moves or other.moves,
            self.n_bytes + other.n_bytes,
        )


def is_byte_copy(subject: Subject) -> bool:
    """True when the file's bytes must be those of the source."""
    return subject.operation.is_copy and subject.found.dtype == subject.operation.dtype


def compare_bytes(subject: Subject, *, full: bool) -> Tally:
    """Bytes that are not those of the source; counts are in bytes."""
    operation = subject.operation
    skip = operation.source.row * operation.cols * reading.BITS[operation.source.tensor.dtype] // 8
    tally = Tally()
    for piece in looks.pieces(operation.tensor, subject.found.n_bytes, full=full):
        stored = reading.raw(subject.folder, subject.found, piece.start, piece.stop)
        wanted = subject.inputs.source(operation, skip + piece.start, skip + piece.stop)
        n_wrong = 0 if np.array_equal(stored, wanted) else int(np.count_nonzero(stored != wanted))
        tally += Tally(len(stored), n_wrong, same=n_wrong == 0, n_bytes=len(stored))
    return tally


def compare_values(subject: Subject, *, full: bool, strict: bool) -> Tally:
    """Values that no allowed rounding explains."""
    operation = subject.operation
    tally = Tally()
    with np.errstate(all="ignore"):
        for block in walk(operation, subject.inputs, looks.rows(operation, full=full)):
            tally += _count(subject, block, strict=strict, still_same=tally.same)
    return tally


def stored_bytes(subject: Subject, rows: slice) -> Bytes:
    """Rows of the tensor in the folder, as they are stored."""
    width = subject.operation.cols * reading.BITS[subject.found.dtype] // 8
    return reading.raw(subject.folder, subject.found, rows.start * width, rows.stop * width)


def _count(subject: Subject, block: Block, *, strict: bool, still_same: bool) -> Tally:
    """Count a block. The bounds are computed only for rows in which a value is not the rounding of the exact one."""
    operation = subject.operation
    data, source = stored_bytes(subject, block.rows), source_bytes(operation, subject.inputs, block.rows)
    doubtful, largest = _compiled(subject, block, source, data) or _compared(subject, block, data)
    n_wrong = n_twice = 0
    for rows in _runs(doubtful, block.rows.start):
        expected = expect(operation, block.terms, subject.inputs, rows)
        here = reading.floats(stored_bytes(subject, rows), subject.found.dtype).reshape(-1, operation.cols)
        wrong = ~is_right(subject, here, expected, chance(subject, Block(rows, block.terms)))
        lenient = wrong.any() and not strict and not is_random(subject)
        passed = wrong & passes(subject, here, expected) if lenient else np.zeros_like(wrong)
        n_twice += int(np.count_nonzero(passed))
        n_wrong += int(np.count_nonzero(wrong & ~passed))
    same = still_same and subject.found.dtype == operation.source.tensor.dtype and np.array_equal(data, source)
    return Tally(
        n_checked=(block.rows.stop - block.rows.start) * operation.cols,
        n_wrong=n_wrong,
        n_twice=n_twice,
        max_error=largest,
        same=same,
        moves=same and largest > 0,
        n_bytes=len(data),
    )


def _compiled(subject: Subject, block: Block, source: Bytes, data: Bytes) -> tuple[Mask, float] | None:
    """Doubtful rows, and the largest error, by the compiled judge, where one LoRA changes all of the rows."""
    if len(block.terms) != 1:
        return None
    (item,), rows = block.terms, block.rows
    if item.term.method != "lora" or (item.term.start, item.term.stop) != (rows.start, rows.stop):
        return None
    gamma = bounds.gamma(bounds.ROUNDINGS["lora"](item.term.rank), FLOAT32_UNIT)
    product = exact.Product(item.factors["B"], item.factors["A"], item.term.scale, gamma)
    drawn = chance(subject, block)
    bits = None if drawn is None else drawn.bits
    return exact.judge(source, data, product, (subject.operation.source.tensor.dtype, subject.found.dtype), bits)


def _compared(subject: Subject, block: Block, data: Bytes) -> tuple[Mask, float]:
    """The same by numpy, for every method."""
    operation, fmt = subject.operation, FORMATS[subject.found.dtype]
    wanted = exact_rows(operation, block.terms, subject.inputs, block.rows)
    stored = reading.floats(data, subject.found.dtype).reshape(-1, operation.cols)
    drawn = chance(subject, block)
    at_random = None if drawn is None else stored == fmt.at_random(wanted, drawn.bits)
    distance = np.subtract(stored, wanted, out=stored)
    np.abs(distance, out=distance)
    sure = distance <= fmt.half_ulp(np.abs(wanted))
    if drawn is not None and at_random is not None:
        sure = np.where(drawn.rows, at_random, sure)
    return np.any(~sure, axis=1), _largest(distance)


def _largest(distance: Floats) -> float:
    """The largest finite value."""
    largest = float(distance.max(initial=0.0))
    return largest if math.isfinite(largest) else float(distance[np.isfinite(distance)].max(initial=0.0))


def _runs(rows: Mask, first: int) -> Iterator[slice]:
    """The marked rows as ranges, counted from `first`; all of them as one range where many are marked."""
    marked = np.flatnonzero(rows)
    if len(marked) * 4 > len(rows):
        yield slice(first, first + len(rows))
        return
    for run in np.split(marked, np.flatnonzero(np.diff(marked) > 1) + 1):
        if len(run):
            yield slice(first + int(run[0]), first + int(run[-1]) + 1)


@dataclass(frozen=True, slots=True)
class Chance:
    """The rows that were rounded at random, (rows, 1), and the bits of all values, (rows, cols)."""

    rows: Mask
    bits: noise.Words


def is_random(subject: Subject) -> bool:
    """True where rounding at random is planned, and the file has the dtype that it was planned for."""
    return subject.operation.seed is not None and subject.found.dtype == subject.operation.dtype


def chance(subject: Subject, block: Block) -> Chance | None:
    """What decided in these rows; None where all was rounded to nearest."""
    operation, rows = subject.operation, block.rows
    if not is_random(subject) or operation.seed is None:
        return None
    n = (rows.stop - rows.start) * operation.cols
    bits = noise.bits(noise.key(operation.seed, operation.tensor), rows.start * operation.cols, n)
    return Chance(touched(operation, block)[:, None], bits.reshape(-1, operation.cols))


def is_right(subject: Subject, stored: Floats, expected: Expected, drawn: Chance | None) -> Mask:
    """True where the value is the one rounding, of the kind that is planned, of what float32 may give."""
    fmt = FORMATS[subject.found.dtype]
    right = agrees(stored, expected.exact, expected.error, fmt)
    if drawn is None:
        return right
    at_random = agrees_at_random(stored, expected.exact, expected.error, drawn.bits, fmt)
    found: Mask = np.where(drawn.rows, at_random, right)
    return found


def passes(subject: Subject, stored: Floats, expected: Expected) -> Mask:
    """True where the value is one that several roundings may give."""
    source = FORMATS[subject.operation.source.tensor.dtype]
    file = FORMATS[subject.found.dtype]
    unit = max([source.unit, file.unit, *_units_of_factors(subject)])
    tolerance = expected.error + 4 * unit * expected.update
    if source.unit < file.unit:
        tolerance += file.unit * np.abs(expected.exact)
    return agrees(stored, expected.exact, tolerance, source if source.unit > file.unit else file)


def _units_of_factors(subject: Subject) -> list[float]:
    names = {view.tensor for term in subject.operation.terms for view in term.factors.values()}
    return [FORMATS[subject.inputs.factors[name].dtype].unit for name in sorted(names)]


def unjudgeable(subject: Subject, *, strict: bool) -> TensorVerdict | None:
    """A verdict without a look at the values: the shape or the dtype is not one that can be right."""
    operation, found = subject.operation, subject.found
    if found.shape != operation.shape:
        detail = f"shape {list(found.shape)}, planned {list(operation.shape)}"
        return TensorVerdict(operation.tensor, "shape", 0, 0, 0.0, None, detail)
    other = found.dtype != operation.dtype
    if other and (
        strict or operation.part_of or found.dtype not in FORMATS or operation.source.tensor.dtype not in FORMATS
    ):
        detail = f"stored as {found.dtype}, planned {operation.dtype}"
        return TensorVerdict(operation.tensor, "dtype", 0, 0, 0.0, None, detail)
    return None
