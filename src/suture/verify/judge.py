"""One tensor of the merged model against what base + adapter gives there.

**The rule for a value.** Let x be the exact value in float64 and E the proven bound on float32 arithmetic
(`suture.verify.bounds`). A stored value is right when it is within ½ ulp(|x| + E) + E of x: the rounding of something
that one float32 evaluation of the formula may give. ulp is that of the dtype in the file.

**Rounded twice.** Other tools round more often: the update to 16 bits, then the sum. With u the relative error of one
rounding in the coarsest dtype that took part (source, factors, file), and D the size of the numbers that the update is
summed from, a value is let pass within

    ½ ulp(|x| + T) + T        T = E + 4u · D  (+ u · |x| where the source is finer than the file)

four roundings being those of the two factors, their product and the scaled product; ulp is that of the coarser of
source and file. Such values are counted and told. They are wrong in a merge that claims one rounding (`strict`).

**Copies** must have the bytes of their source; where the file has another float dtype, one rounding to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suture.values import Operation, TensorInfo, TensorVerdict
from suture.verify import looks, reading
from suture.verify.expect import Expected, Inputs, source_bytes, walk
from suture.verify.reading import Floats
from suture.verify.rounding import FORMATS, Mask, agrees


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

    `max_error` is the largest |stored − exact|; `same`: no byte differs from the source's; `moves`: some value should.
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
    source, folder = operation.source.tensor, subject.inputs.folder(operation)
    skip = operation.source.row * operation.cols * reading.BITS[source.dtype] // 8
    tally = Tally()
    for piece in looks.pieces(operation.tensor, subject.found.n_bytes, full=full):
        stored = reading.raw(subject.folder, subject.found, piece.start, piece.stop)
        wanted = reading.raw(folder, source, skip + piece.start, skip + piece.stop)
        n_wrong = 0 if np.array_equal(stored, wanted) else int(np.count_nonzero(stored != wanted))
        tally += Tally(len(stored), n_wrong, same=n_wrong == 0, n_bytes=2 * len(stored))
    return tally


def compare_values(subject: Subject, *, full: bool, strict: bool) -> Tally:
    """Values that no allowed rounding explains."""
    with np.errstate(all="ignore"):
        tally = Tally()
        for _, stored, expected, same in seen(subject, full=full):
            tally += _count(subject, stored, expected, strict=strict, same=same)
    return tally


def seen(subject: Subject, *, full: bool) -> Iterator[tuple[slice, Floats, Expected, bool]]:
    """Rows, what is stored and what is expected there, and whether the bytes are those of the source."""
    operation, found = subject.operation, subject.found
    for rows, expected in walk(operation, subject.inputs, looks.rows(operation, full=full)):
        width = operation.cols * reading.BITS[found.dtype] // 8
        data = reading.raw(subject.folder, found, rows.start * width, rows.stop * width)
        same = found.dtype == operation.source.tensor.dtype and np.array_equal(
            data, source_bytes(operation, subject.inputs, rows)
        )
        yield rows, reading.floats(data, found.dtype).reshape(-1, operation.cols), expected, same


def _count(subject: Subject, stored: Floats, expected: Expected, *, strict: bool, same: bool) -> Tally:
    right = agrees(stored, expected.exact, expected.error, FORMATS[subject.found.dtype])
    n_wrong = right.size - int(np.count_nonzero(right))
    n_twice = 0
    if n_wrong and not strict:
        n_twice = int(np.count_nonzero(~right & passes(subject, stored, expected)))
    distance = np.abs(stored - expected.exact)
    finite = distance[np.isfinite(distance)]
    return Tally(
        n_checked=right.size,
        n_wrong=n_wrong - n_twice,
        n_twice=n_twice,
        max_error=float(finite.max(initial=0.0)),
        same=same,
        moves=not np.array_equal(expected.exact, expected.source),
        n_bytes=right.size
        * (reading.BITS[subject.found.dtype] + reading.BITS[subject.operation.source.tensor.dtype])
        // 8,
    )


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
    if other and (strict or found.dtype not in FORMATS or operation.source.tensor.dtype not in FORMATS):
        detail = f"stored as {found.dtype}, planned {operation.dtype}"
        return TensorVerdict(operation.tensor, "dtype", 0, 0, 0.0, None, detail)
    return None
