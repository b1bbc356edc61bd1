"""Output files that are, byte for byte, files of the base: they can be linked or cloned instead of copied."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from suture.errors import OutputError
from suture.execute.claim import Claim
from suture.execute.inputs import Inputs
from suture.execute.pieces import header_bytes
from suture.formats.files import inside, open_regular, read_exact
from suture.values import Operation, OutputFile, Plan

log = logging.getLogger(__name__)


def whole_files(plan: Plan, inputs: Inputs, *, tell: bool) -> Mapping[str, Path]:
    """Output file → the file of the base that it equals: all its tensors are copies, each in its old place.

    Args:
        tell: warn of files whose tensors stay but whose header was written in another way.

    Raises:
        InputError: the beginning of a file of the base cannot be read.
    """
    operations: dict[str, list[Operation]] = {file.name: [] for file in plan.files}
    for op in plan.operations:
        operations[op.file].append(op)
    found = {}
    for file in plan.files:
        names = {op.source.tensor.file for op in operations[file.name]}
        if len(names) != 1 or not all(map(_stays, operations[file.name])):
            continue
        path = inside(inputs.checkpoint.folder, names.pop())
        if _begins(path, file):
            found[file.name] = path.resolve()
        elif tell:
            log.warning("%s: no tensor changes, but its header is written in another way: it is copied", path)
    return found


def _begins(path: Path, file: OutputFile) -> bool:
    """True for a file of that size and with that header."""
    header = header_bytes(file)
    with open_regular(path) as opened:
        if opened.n_bytes != file.n_bytes:
            return False
        beginning = bytearray(len(header))
        read_exact(opened, 0, beginning)
    return beginning == header


def _stays(op: Operation) -> bool:
    """True for a copy of the base that keeps its size and its place among the others."""
    tensor = op.source.tensor
    of_base = op.source.origin == "base" and tensor.is_stored
    return op.is_copy and of_base and op.end - op.begin == tensor.n_bytes


def require_linkable(claimed: Claim, links: Mapping[str, Path]) -> None:
    """Refuse hard links from one file system to another.

    Raises:
        OutputError: they would be.
    """
    for name, path in sorted(links.items()):
        if path.stat().st_dev != claimed.shop.stat().st_dev:
            raise OutputError(
                f"{name} cannot be a link to {path}, which is on another file system",
                where=str(claimed.out),
                do="Leave --link out, or write to the base's file system. Nothing was written.",
            )
