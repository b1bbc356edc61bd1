"""What is on disk, as headers and configs describe it. No weight has been read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a safetensors file: where its bytes lie. `begin` and `end` count from the start of the file."""

    name: str
    dtype: str  # a name of the safetensors format: "F32", "BF16", "F8_E4M3" …
    shape: tuple[int, ...]
    file: str  # relative to the folder it was found in
    begin: int
    end: int

    @property
    def n_bytes(self) -> int:
        """Size of the tensor's bytes in the file."""
        return self.end - self.begin

    @property
    def n_values(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file: its name, its size, and the metadata block of its header."""

    name: str
    n_bytes: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A Hugging Face model folder as its headers describe it. No weight has been read."""

    folder: Path
    config: Json
    tensors: Mapping[str, TensorInfo]
    shards: tuple[Shard, ...]
    index_file: str | None
    index_metadata: Json
    side_files: tuple[str, ...]  # every other regular file below the folder, sorted: tokenizer, templates, code

    @property
    def n_bytes(self) -> int:
        """Sum of the tensors' bytes."""
        return sum(t.n_bytes for t in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PEFT adapter as its header and its config describe it. Keys are those of the file, untouched."""

    folder: Path
    name: str  # "default", or the name of the subfolder it was saved to
    config: Json
    tensors: Mapping[str, TensorInfo]
    file: str
    side_files: tuple[str, ...]
