"""The files that a merge reads, and whether they are still what the plan was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from suture.errors import InputChanged
from suture.values import Adapter, Checkpoint, Origin, Plan, TensorInfo

AGAIN = "Run the merge again: it reads the inputs anew. Nothing was written."


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a plan's sources, terms and side files refer to."""

    checkpoint: Checkpoint
    adapter: Adapter

    def folder(self, origin: Origin) -> Path:
        """The folder that files of that origin lie in."""
        return self.checkpoint.folder if origin == "base" else self.adapter.folder

    def tensors(self, origin: Origin) -> Mapping[str, TensorInfo]:
        """All tensors of that origin, by name."""
        return self.checkpoint.tensors if origin == "base" else self.adapter.tensors


def check_inputs(plan: Plan, inputs: Inputs) -> None:
    """Compare the plan's tensors with the headers that were read, and the headers with the files' sizes.

    Raises:
        InputChanged: they differ, or a file is gone.
    """
    stored = inputs.checkpoint.stored
    for op in plan.operations:
        tensor = op.source.tensor
        held = stored if op.source.origin == "base" and tensor.is_stored else inputs.tensors(op.source.origin)
        if held.get(tensor.name) != tensor:
            _changed(f"{tensor.file}: {tensor.name}", "the tensor is not where the plan says, or not of that shape")
    for path, size in _sizes(inputs):
        found = _size(path)
        if found != size:
            _changed(str(path), f"{found:,} bytes" if found >= 0 else "the file is gone", f"{size:,} bytes")
    for side in plan.side_files:
        if _size(path := inputs.folder(side.origin) / side.name) < 0:
            _changed(str(path), "the file is gone")


def state(plan: Plan, inputs: Inputs, *, strict: bool = False) -> str:
    """A digest of size, date and inode of each file that is read: equal only if none was touched.

    Args:
        strict: also of when the inode changed, so that a date that was set back hides nothing. Links that others make
            to the file change that as well, so it can tell what is to be done anew, but not what is wrong.
    """
    paths = [path for path, _ in _sizes(inputs)]
    paths += [inputs.folder(side.origin) / side.name for side in plan.side_files]
    total = hashlib.sha256()
    for path in sorted(set(paths)):
        try:
            stat = path.stat()
        except OSError:
            _changed(str(path), "the file is gone")
        changed = stat.st_ctime_ns if strict else 0
        total.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}\0{changed}\n".encode())
    return total.hexdigest()


def require_unchanged(plan: Plan, inputs: Inputs, before: str) -> None:
    """Compare the files with an earlier `state`.

    Raises:
        InputChanged: a file was touched in the meantime.
    """
    if state(plan, inputs) != before:
        _changed(str(inputs.checkpoint.folder), "files of the base or of the adapter changed during the merge")


def _sizes(inputs: Inputs) -> Iterable[tuple[Path, int]]:
    """Every weight file with the size that its header implies."""
    for shard in inputs.checkpoint.shards:
        yield inputs.checkpoint.folder / shard.name, shard.n_bytes
    ends: dict[str, int] = {}
    for tensor in inputs.adapter.tensors.values():
        ends[tensor.file] = max(tensor.end, ends.get(tensor.file, 0))
    for name in sorted(ends):
        yield inputs.adapter.folder / name, ends[name]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _changed(where: str, found: str, expected: str = "the file as it was when the plan was made") -> None:
    raise InputChanged(found, where=where, expected=expected, do=AGAIN)
