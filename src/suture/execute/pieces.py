"""A plan cut into pieces: consecutive bytes of one output file, small enough to lose, large enough to journal. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TypeAlias

from suture.codec import digest
from suture.errors import FormatError
from suture.execute.receipt import RECEIPT
from suture.formats.dtypes import DTYPES
from suture.planning.layout import blocks
from suture.planning.layout import n_bytes as n_bytes_of
from suture.values import Operation, Origin, OutputFile, Plan, TensorInfo

PIECE_BYTES = 8 << 20
COMPUTE_COST = 3  # a computed byte takes about as long as three copied ones


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that go unchanged from an input file to `begin` in the output: one tensor, a part of it, or several."""

    origin: Origin
    source: TensorInfo  # `begin` and `end` are those of the span; the name is that of its first tensor
    begin: int

    @property
    def end(self) -> int:
        """Where it ends in the output file."""
        return self.begin + self.source.n_bytes


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows start:stop of an operation: whole blocks of the plan."""

    op: Operation
    start: int
    stop: int

    @property
    def end(self) -> int:
        """Where they end in the output file."""
        return self.op.begin + self.stop * row_bytes(self.op)

    def blocks(self) -> Iterator[slice]:
        """The plan's row blocks among these rows."""
        for block in blocks(self.stop - self.start, self.op.block_rows):
            yield slice(self.start + block.start, self.start + block.stop)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a weight that is quantised, whole."""

    op: Operation

    @property
    def end(self) -> int:
        """Where it ends in the output file."""
        return self.op.end


Step: TypeAlias = Span | Rows | Part


@dataclass(frozen=True, slots=True)
class Piece:
    """What one worker does in one go. Pieces of a file are numbered in the order of their bytes."""

    number: int
    file: str
    begin: int
    end: int
    steps: tuple[Step, ...]

    @property
    def n_bytes(self) -> int:
        """Size in the output file."""
        return self.end - self.begin

    @property
    def cost(self) -> int:
        """Effort, in bytes of plain copy."""
        return sum(s.source.n_bytes if isinstance(s, Span) else COMPUTE_COST * _size(s) for s in self.steps)


def row_bytes(op: Operation) -> int:
    """Bytes of one output row."""
    return (op.end - op.begin) // op.rows


def split(plan: Plan, without: Collection[str] = ()) -> tuple[Piece, ...]:
    """All pieces of a plan. They cover each file from the end of its header to its end.

    Args:
        without: files that are not to be written.

    Raises:
        FormatError: the plan's bytes do not fit together, or a file name leaves the folder.
    """
    _check_names(plan)
    operations: dict[str, list[Operation]] = {f.name: [] for f in plan.files}
    for op in plan.operations:
        if op.file not in operations:
            raise _malformed(op, "its file is not in the plan")
        operations[op.file].append(op)
    pieces: list[Piece] = []
    for file in plan.files:
        if file.name in without:
            continue
        for begin, steps in _grouped(file, _steps(file, operations[file.name])):
            pieces.append(Piece(len(pieces), file.name, begin, steps[-1].end, tuple(steps)))
    return tuple(pieces)


def division(pieces: Iterable[Piece]) -> str:
    """A digest of where the pieces begin and end."""
    return digest([(piece.file, piece.begin, piece.end) for piece in pieces])


def header_bytes(file: OutputFile) -> bytes:
    """The beginning of an output file."""
    return file.header.encode("latin-1")


def _grouped(file: OutputFile, steps: Iterable[Step]) -> Iterator[tuple[int, list[Step]]]:
    """Steps in groups of about PIECE_BYTES, each with the offset it begins at."""
    begin, group = len(header_bytes(file)), list[Step]()
    for step in steps:
        last = group[-1] if group else None
        if isinstance(step, Span) and isinstance(last, Span) and _adjacent(last, step):
            group[-1] = replace(last, source=replace(last.source, end=step.source.end))
        else:
            group.append(step)
        if step.end - begin >= PIECE_BYTES:
            yield begin, group
            begin, group = step.end, []
    if group:
        yield begin, group


def _adjacent(last: Span, step: Span) -> bool:
    """True when one read can fetch both."""
    return (last.origin, last.source.file, last.source.end) == (step.origin, step.source.file, step.source.begin)


def _steps(file: OutputFile, operations: Iterable[Operation]) -> Iterator[Step]:
    """The operations of one file, in steps of about PIECE_BYTES (or one block)."""
    at = len(header_bytes(file))
    for op in operations:
        if op.begin != at or op.end < op.begin:
            raise _malformed(op, f"it begins at byte {op.begin:,} of {op.file}, where byte {at:,} is due")
        at = op.end
        yield from _copy_steps(op) if op.is_copy else _part_steps(op) if op.part_of else _row_steps(op)
    if at != file.n_bytes:
        raise FormatError(f"the tensors end at byte {at:,}", where=file.name, expected=f"{file.n_bytes:,} bytes")


def _copy_steps(op: Operation) -> Iterator[Span]:
    source, n_bytes = op.source.tensor, op.end - op.begin
    first = source.begin
    if op.source.row:
        first += op.source.row * op.cols * DTYPES[op.dtype].bits // 8
    if first + n_bytes > source.end:
        raise _malformed(op, f"{n_bytes:,} bytes are to be copied out of the {source.n_bytes:,} of {source.name}")
    for offset in range(0, n_bytes, PIECE_BYTES):
        begin, end = first + offset, min(first + offset + PIECE_BYTES, first + n_bytes)
        yield Span(op.source.origin, replace(source, begin=begin, end=end), op.begin + offset)


def _row_steps(op: Operation) -> Iterator[Rows]:
    source = op.source.tensor
    per_row = op.cols * DTYPES[op.dtype].bits // 8
    if op.end - op.begin != op.rows * per_row:
        raise _malformed(op, f"{op.end - op.begin:,} bytes for {op.rows:,} rows of {op.cols:,} {op.dtype}")
    if (op.source.row + op.rows) * op.cols > source.n_values:
        raise _malformed(op, f"{op.rows:,} rows are to be read out of {source.name} {list(source.shape)}")
    start = 0
    for block in blocks(op.rows, op.block_rows):
        if (block.stop - start) * per_row >= PIECE_BYTES or block.stop == op.rows:
            yield Rows(op, start, block.stop)
            start = block.stop


def _part_steps(op: Operation) -> Iterator[Part]:
    n_bytes, weight = n_bytes_of(op.dtype, op.shape), op.weight
    if op.end - op.begin != n_bytes:
        raise _malformed(op, f"{op.end - op.begin:,} bytes for {op.dtype} {list(op.shape)}")
    if not 0 < op.block_rows <= weight.rows or op.source.row:
        raise _malformed(op, f"blocks of {op.block_rows:,} rows of a weight that has {weight.rows:,}")
    yield Part(op)


def _size(step: Step) -> int:
    return step.source.n_bytes if isinstance(step, Span) else computed_bytes(step)


def computed_bytes(step: Step) -> int:
    """Bytes that a step computes; 0 for one that copies."""
    if isinstance(step, Part):
        return step.op.end - step.op.begin
    return (step.stop - step.start) * row_bytes(step.op) if isinstance(step, Rows) else 0


def _check_names(plan: Plan) -> None:
    """Output names are relative, stay inside the folder, and none is written twice."""
    names = [RECEIPT, *(f.name for f in plan.files), *plan.texts, *(s.name for s in plan.side_files)]
    for name in names:
        path = PurePosixPath(name)
        if not name or str(path) != name or path.is_absolute() or ".." in path.parts or "\0" in name or name == ".":
            raise FormatError(f"{name!r} is not a plain relative file name", where="plan", do="Make the plan again.")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise FormatError(f"{', '.join(twice)} would be written twice", where="plan", do="Make the plan again.")


def _malformed(op: Operation, found: str) -> FormatError:
    return FormatError(found, where=f"{op.file}: {op.tensor}", expected="a plan as Suture makes it", do="Plan again.")
