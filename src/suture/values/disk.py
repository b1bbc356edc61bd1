"""What is on disk, as headers and configs describe it. No weight has been read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

Json = Mapping[str, Any]

# Where the bytes of a dense tensor begin that no file holds: a reader that does not know better fails there.
NOT_STORED = 1 << 60


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a safetensors file: where its bytes lie. `begin` and `end` count from the start of the file.

    The dense form of a packed weight has no place: it begins at NOT_STORED; `Checkpoint.packed` says how it is made.
    """

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
    def is_stored(self) -> bool:
        """True for a tensor that a file holds, False for one that is decoded from others."""
        return self.begin < NOT_STORED

    @property
    def n_values(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Packed:
    """What a dense tensor is decoded from: a scheme of `formats.quantized`, and the stored tensors by their roles.

    Every stored tensor that belongs to the weight is a part, also those that decoding does not need.
    """

    scheme: str
    parts: Mapping[str, TensorInfo]
    settings: Json  # what the parts' shapes do not tell: block sizes, bits, …


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights of a checkpoint are stored that is read as the dense model which they stand for."""

    method: str  # `quant_method` of the config
    words: str  # the method with its settings, for people
    dtype: str  # of the model, by its config; weights that are dequantised in float32 are written in it
    config: Json  # config.json as it is in the folder
    stored: bool = True  # False for weights of 16 bits that are looked at as if they had been quantised


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file: its name, its size, and the metadata block of its header."""

    name: str
    n_bytes: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A Hugging Face model folder as its headers describe it. No weight has been read.

    After `formats.quantized.unpack`, `tensors` and `config` are those of the dense model, and `packed` tells what the
    tensors that no file holds are decoded from.
    """

    folder: Path
    config: Json
    tensors: Mapping[str, TensorInfo]
    shards: tuple[Shard, ...]
    index_file: str | None
    index_metadata: Json
    side_files: tuple[str, ...]  # every other regular file below the folder, sorted: tokenizer, templates, code
    packed: Mapping[str, Packed] = field(default_factory=dict)  # dense tensor → what it is decoded from
    quantization: Quantization | None = None

    @property
    def stored(self) -> Mapping[str, TensorInfo]:
        """The tensors that the files hold."""
        if not self.packed:
            return self.tensors
        plain = {name: tensor for name, tensor in self.tensors.items() if name not in self.packed}
        return plain | {part.name: part for packed in self.packed.values() for part in packed.parts.values()}

    @property
    def as_stored(self) -> Checkpoint:
        """The checkpoint as its files hold it: a packed weight is the tensors that it is stored in."""
        if self.quantization is None:
            return self
        return replace(self, config=self.quantization.config, tensors=self.stored, packed={}, quantization=None)

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
