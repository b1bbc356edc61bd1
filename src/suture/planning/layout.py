"""Where every byte of the output goes: shards, offsets, headers, and the row blocks in which tensors are computed.

Shards keep the base's names and order; a tensor that the base lacks follows in the shard of the one it is made from.
What was packed takes more room than before, and is divided anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from suture.formats.checkpoint import SINGLE
from suture.formats.dtypes import DTYPES
from suture.values import Operation, OutputFile

BLOCK_VALUES = 512 * 1024  # 1 MiB of bf16: what a core's cache holds; fewer cost more calls
MIN_BLOCK_ROWS = 64  # fewer rows would give other bytes: matrix products take other paths for small blocks
HEADER_ALIGNMENT = 8
SHARD_BYTES = 5_000_000_000  # where the base's own division says nothing of the output's sizes


@dataclass(frozen=True, slots=True)
class Layout:
    """Operations with their places, and the files that hold them."""

    operations: tuple[Operation, ...]
    files: tuple[OutputFile, ...]


def block_rows(rows: int, cols: int) -> int:
    """Rows of a block: about BLOCK_VALUES values, at least MIN_BLOCK_ROWS rows, at most all."""
    return max(1, min(rows, max(MIN_BLOCK_ROWS, BLOCK_VALUES // max(cols, 1))))


def blocks(rows: int, size: int) -> Iterable[slice]:
    """Row ranges of `size` rows; the last takes the tail."""
    n = max(1, rows // size) if rows else 0
    return (slice(k * size, rows if k == n - 1 else (k + 1) * size) for k in range(n))


def n_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Size of a tensor."""
    return math.prod(shape) * DTYPES[dtype].bits // 8


def reshard(operations: Iterable[Operation], max_bytes: int = SHARD_BYTES) -> list[Operation]:
    """The operations, in their order, in new files of at most `max_bytes` (or one tensor)."""
    groups: list[list[Operation]] = [[]]
    size = 0
    for operation in operations:
        more = n_bytes(operation.dtype, operation.shape)
        if groups[-1] and size + more > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(operation)
        size += more
    n = len(groups)
    names = [SINGLE] if n == 1 else [f"model-{k:05}-of-{n:05}.safetensors" for k in range(1, n + 1)]
    return [replace(op, file=name) for name, group in zip(names, groups, strict=True) for op in group]


def lay_out(operations: Iterable[Operation], metadata: Mapping[str, Mapping[str, str]]) -> Layout:
    """Give every operation its bytes. `metadata` is that of each file's header, by file."""
    by_file: dict[str, list[Operation]] = {name: [] for name in sorted(metadata)}
    for operation in operations:
        by_file[operation.file].append(operation)
    placed: list[Operation] = []
    files: list[OutputFile] = []
    for name, members in by_file.items():
        header, members = _place(members, metadata[name])
        placed += members
        end = members[-1].end if members else len(header)
        files.append(OutputFile(name, end, header.decode("latin-1")))
    return Layout(tuple(placed), tuple(files))


def _place(members: list[Operation], metadata: Mapping[str, str]) -> tuple[bytes, list[Operation]]:
    """Header and absolute offsets of one file's tensors, in order."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for op in members:
        size = n_bytes(op.dtype, op.shape)
        entries[op.tensor] = {"dtype": op.dtype, "shape": list(op.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    placed, begin = [], len(header)
    for op in members:
        end = begin + n_bytes(op.dtype, op.shape)
        size = op.block_rows if op.part_of else block_rows(op.rows, op.cols)
        placed.append(replace(op, begin=begin, end=end, block_rows=size))
        begin = end
    return header, placed
