"""What a merge will do, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from suture.values.disk import TensorInfo
from suture.values.meaning import Term

TiedPolicy = Literal["auto", "untie", "keep", "refuse"]
TokenizerPolicy = Literal["auto", "base", "adapter"]
OntoPolicy = Literal["auto", "original", "dequantized"]
Rounding = Literal["nearest", "stochastic"]
Origin = Literal["base", "adapter"]
OutputPolicy = Literal["dense", "same"]
Why = Literal["copy", "cast", "dequantize", "merge", "replace", "requantize", "untie"]


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may choose about the bytes of a merge."""

    tied: TiedPolicy = "auto"
    dtype: str | None = None  # of the merged model, e.g. "F32"; None keeps each tensor's own
    onto: OntoPolicy = "auto"  # auto: what BASE's weights are, or stand for
    trained_on: str | None = None  # how the base was quantised in training: see `formats.quantized.as_trained.FORMS`
    output: OutputPolicy = "dense"  # same: weights that are quantised in BASE are quantised in the merged model too
    tokenizer: TokenizerPolicy = "auto"  # auto: the adapter's when it extends the base's
    ignore: tuple[str, ...] = ()  # rule codes whose findings do not stop the merge, where the rule allows it
    rounding: Rounding = "nearest"  # to 16 bits, of what the adapter changes; all else is rounded to nearest
    seed: int = 0  # of the random bits of stochastic rounding


@dataclass(frozen=True, slots=True)
class Source:
    """Where an operation's rows come from: a tensor of the base or a full tensor of the adapter, from `row` on."""

    origin: Origin
    tensor: TensorInfo
    row: int = 0


@dataclass(frozen=True, slots=True)
class Operation:
    """One tensor of the output: rows of `source`, changed by `terms`, rounded once to `dtype`, written at `begin`.

    With a `seed` the rows of the terms, and all rows of a tensor of the adapter, are rounded up or down at random, by
    bits that follow from the seed, the tensor's name and the place of a value in it. All else is rounded to nearest.

    The tensor is handled as a matrix of `cols` columns in blocks of `block_rows` rows; the last block takes the tail
    (so it has between block_rows and 2·block_rows − 1 rows, or all rows of a tensor smaller than a block).

    A `part_of` a packed weight is what a quantiser makes of the weight that the source and the terms give, unrounded:
    codes, or scales. Then terms, source and block_rows are those of that weight, see `weight`.
    """

    tensor: str
    why: Why
    source: Source
    terms: tuple[Term, ...]
    dtype: str
    shape: tuple[int, ...]
    cols: int
    block_rows: int
    file: str
    begin: int  # absolute, in the output file
    end: int
    part_of: str = ""  # the weight that is quantised, by its name in the model
    seed: int | None = None

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return math.prod(self.shape) // self.cols if self.cols else 0

    @property
    def is_copy(self) -> bool:
        """True when the output's bytes are the source's bytes."""
        return not self.part_of and not self.terms and self.dtype == self.source.tensor.dtype

    @property
    def weight(self) -> Operation:
        """What a part is quantised from: the whole weight in float32, which is not written. All else is itself."""
        if not self.part_of:
            return self
        shape = self.source.tensor.shape
        return replace(
            self,
            tensor=self.part_of,
            dtype="F32",
            shape=shape,
            cols=shape[-1],
            begin=0,
            end=4 * self.source.tensor.n_values,
            part_of="",
        )


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One weight file of the output; `header` is its complete beginning: length, JSON, padding (as text, latin-1)."""

    name: str
    n_bytes: int
    header: str


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file copied byte for byte from the base or the adapter folder."""

    name: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Sides:
    """Files to copy, what was decided, and why a decision could not be made."""

    files: tuple[SideFile, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    n_tokens: int | None = None  # of the adapter's tokenizer when it was chosen


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a merge will do, as data. The same plan gives the same bytes. It names no path of a machine."""

    schema: int
    base_fingerprint: str
    adapter_sha256: str
    options: Options
    operations: tuple[Operation, ...]  # by file, then by offset
    files: tuple[OutputFile, ...]
    texts: Mapping[str, str]  # generated files: config.json when it changes, the index
    side_files: tuple[SideFile, ...]
    untied: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()  # decisions, in words, for people

    @property
    def n_bytes_written(self) -> int:
        """Size of the weight files to be written."""
        return sum(f.n_bytes for f in self.files)

    @property
    def n_bytes_read(self) -> int:
        """Bytes of tensors to be read, factors excluded."""
        return sum(op.source.tensor.n_bytes for op in self.operations)
