"""Operations for a model whose weights stay quantised: stored tensors, and new parts of what changes. Pure.

Every stored tensor keeps its name, dtype, shape and file. A packed weight that nothing changes is copied part by part;
of one that changes, the parts that its quantiser gives are computed, and the others (maps, settings) copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from suture.errors import UsageError
from suture.formats.quantized.requantize import changing, quantizer_of
from suture.planning.layout import block_rows
from suture.values import Checkpoint, Operation, Options, Source, TensorInfo

_WHERE, _DENSE = "--output same", "Merge with --output dense."


def stored_operations(checkpoint: Checkpoint, operations: Iterable[Operation]) -> tuple[Operation, ...]:
    """Operations of the dense model → those of the model as it is stored, in the order of the base's files."""
    stored = checkpoint.stored
    made = [op for one in operations for op in _parts(one, checkpoint)]
    # A tensor that the base lacks comes last in its file.
    return tuple(sorted(made, key=lambda op: (op.file, stored[op.tensor].begin if op.tensor in stored else math.inf)))


def require_possible(checkpoint: Checkpoint, operations: Iterable[Operation], options: Options) -> None:
    """Refuse what has no quantised form, or what nothing here can quantise.

    Raises:
        UsageError: it is asked for.
    """
    quantization = checkpoint.quantization
    if quantization is None or not quantization.stored:
        raise UsageError("the weights of BASE are not quantised", where=_WHERE, expected="a quantised BASE", do=_DENSE)
    if options.dtype is not None:
        found = "the type of the weights follows from how BASE is quantised"
        raise UsageError(found, where=_WHERE, expected="no --dtype", do="Leave one of the two out.")
    if other := [shard.name for shard in checkpoint.shards if not shard.name.endswith(".safetensors")]:
        raise UsageError(f"{other[0]} is of another format", where=_WHERE, expected="safetensors files", do=_DENSE)
    for op in operations:
        packed = checkpoint.packed.get(op.source.tensor.name if op.why == "untie" else op.tensor)
        if packed is not None and not _is_still(op):
            dense = checkpoint.tensors[op.tensor] if op.tensor in checkpoint.packed else op.source.tensor
            quantizer = quantizer_of(packed)
            if quantizer is None:
                found = f"weights of {quantization.words} cannot be quantised again, and {op.tensor} changes"
                raise UsageError(found, where=f"{_WHERE} ({packed.scheme})", do=_DENSE)
            if op.why == "untie" or (op.shape, op.cols) != (dense.shape, dense.shape[-1]) or _is_cut(op):
                found = f"{op.tensor} is quantised, and gets another shape or a tensor of its own"
                raise UsageError(found, where=_WHERE, do=_DENSE)
            quantizer.granule(dense, packed)  # raises for weights that its formula does not cover


def notes(checkpoint: Checkpoint, operations: Iterable[Operation]) -> list[str]:
    """What is quantised again, and what is not."""
    assert checkpoint.quantization is not None
    changed = {op.part_of for op in operations if op.part_of}
    again = f"{len(changed)} weights are quantised again ({checkpoint.quantization.words}), after their update"
    return [f"{again}; the other {len(checkpoint.packed) - len(changed)} keep their bytes"]


def _parts(op: Operation, checkpoint: Checkpoint) -> Iterator[Operation]:
    packed = checkpoint.packed.get(op.tensor)
    if packed is None:
        yield op
        return
    new = {} if _is_still(op) else changing(packed)
    size = _block_rows(op, checkpoint) if new else 1
    for part in packed.parts.values():
        yield _operation(part, op if part in new.values() else None, size)


def _is_still(op: Operation) -> bool:
    """True for a weight that the adapter leaves alone."""
    return not op.terms and op.source.origin == "base" and op.why != "untie"


def _is_cut(op: Operation) -> bool:
    """True where only some of the source's rows are used."""
    return bool(op.source.row) or op.source.tensor.n_values != op.rows * op.cols


def _block_rows(op: Operation, checkpoint: Checkpoint) -> int:
    """Rows that are computed and quantised in one go."""
    packed = checkpoint.packed[op.tensor]
    quantizer = quantizer_of(packed)
    assert quantizer is not None
    granule = quantizer.granule(checkpoint.tensors[op.tensor], packed)
    return min(op.rows, -(-block_rows(op.rows, op.cols) // granule) * granule)


def _operation(part: TensorInfo, of: Operation | None, size: int) -> Operation:
    """A stored tensor: a part of what this operation gives, in blocks of so many rows of that; or a copy."""
    return Operation(
        tensor=part.name,
        why="requantize" if of else "copy",
        source=of.source if of else Source("base", part),
        terms=of.terms if of else (),
        dtype=part.dtype,
        shape=part.shape,
        cols=part.shape[-1] if len(part.shape) > 1 else 1,
        block_rows=size if of else 1,
        file=part.file,
        begin=0,
        end=0,
        part_of=of.tensor if of else "",
    )
