"""The frozen values that flow along the line: what one stage returns, the next one takes.

    Checkpoint, Adapter → Arch → Resolved → Finding… → Plan → Receipt → Verdict

Shapes are tuples of ints, sizes are in bytes, names are the field's own. No value holds an open file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Json = Mapping[str, Any]
Severity = Literal["error", "warning", "info"]
TiedPolicy = Literal["auto", "untie", "keep", "refuse"]
TokenizerPolicy = Literal["auto", "base", "adapter"]
Origin = Literal["base", "adapter"]
Why = Literal["copy", "cast", "merge", "replace", "untie"]

# ---------------------------------------------------------------------------------------------- what is on disk


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


# ---------------------------------------------------------------------------------------------- what a model is

Kind = Literal["Linear", "Conv1D", "Embedding", "Conv1d", "Conv2d", "Conv3d", "Experts", "Other", "Unknown"]


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of the model class, by its module-space name.

    `kind` is the class of the module that owns it. "Conv1D" is Transformers' transposed linear layer (in, out);
    "Experts" a fused 3-D parameter (experts, …), stored (experts, in, out) when `transposed`, else (experts, out, in);
    "Unknown" means that only a header was seen.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    transposed: bool = False

    @property
    def module(self) -> str:
        """Path of the owning module."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Part:
    """How (part of) a checkpoint tensor is made of (part of) a module parameter:

        tensor[start:stop] == param[index], its last two axes swapped when `transpose`

    `index` has one entry per leading axis of the parameter: an int picks, a pair cuts, absent axes are whole.
    `rows` is the range of the tensor's first axis that is filled; None means all of it.
    """

    tensor: str
    param: str
    index: tuple[int | tuple[int, int], ...] = ()
    transpose: bool = False
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Tie:
    """Parameters that the model class keeps as one tensor. The first member is the one the others follow."""

    members: tuple[str, ...]
    separable: bool  # a model with the tie flags off keeps them apart and computes the same function
    why: str = ""  # if not separable: the reason, for the error message


@dataclass(frozen=True, slots=True)
class Arch:
    """What a model is, from its class alone: names, shapes, kinds, ties, and how files become parameters."""

    model_class: str
    source: str  # "transformers 5.23.0", or "headers" when the class is not known to Transformers
    params: Mapping[str, Param]  # in the class's order of declaration
    parts: tuple[Part, ...]
    ties: tuple[Tie, ...]
    tie_flags: tuple[tuple[str, ...], ...]  # paths in config.json that say "tied" and must turn false on untying
    input_embedding: str | None  # module path
    output_embedding: str | None
    opaque: Mapping[str, str] = field(default_factory=dict)  # checkpoint tensor → conversion that Parts cannot express
    unknown: tuple[str, ...] = ()  # checkpoint tensors that the model class does not have


# ---------------------------------------------------------------------------------------------- what an adapter means


@dataclass(frozen=True, slots=True)
class View:
    """A matrix (or vector) cut lazily out of one tensor of the adapter: reshape, then index, then transpose.

    `index` has one entry per axis of `shape`: an int picks, a pair cuts; two pairs give a matrix.
    """

    tensor: str
    shape: tuple[int, ...]
    index: tuple[int | tuple[int, int], ...]
    transpose: bool = False

    @classmethod
    def whole(cls, tensor: TensorInfo, shape: tuple[int, ...] | None = None) -> View:
        """All of a tensor, read as `shape`."""
        shape = tensor.shape if shape is None else shape
        return cls(tensor.name, shape, tuple((0, n) for n in shape))

    @property
    def _free(self) -> tuple[int, ...]:
        free = tuple(axis for axis, i in enumerate(self.index) if not isinstance(i, int))
        return free[::-1] if self.transpose else free

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of the result."""
        cuts = [self.index[axis] for axis in self._free]
        return tuple(c[1] - c[0] for c in cuts if not isinstance(c, int))

    @property
    def T(self) -> View:
        """The transpose."""
        return View(self.tensor, self.shape, self.index, not self.transpose)

    def pick(self, axis: int, at: int) -> View:
        """One position of an axis of `shape`; the axis is gone from the result."""
        return View(self.tensor, self.shape, (*self.index[:axis], at, *self.index[axis + 1 :]), self.transpose)

    def cut(self, result_axis: int, start: int, stop: int) -> View:
        """The range start:stop of an axis of the *result* (0 = rows, 1 = columns)."""
        axis = self._free[result_axis]
        old = self.index[axis]
        assert not isinstance(old, int)
        new = (old[0] + start, old[0] + stop)
        return View(self.tensor, self.shape, (*self.index[:axis], new, *self.index[axis + 1 :]), self.transpose)


@dataclass(frozen=True, slots=True)
class Term:
    """One change to rows start:stop of a matrix W, by the method of that name: see `suture.methods`.

    Factors are by the short names of the method's formula and already in the orientation of W as it is stored.
    `rows_changed` lists row numbers, relative to `start`, for methods that replace single rows.
    """

    method: str
    module: str
    factors: Mapping[str, View]
    scale: float
    start: int
    stop: int
    rank: int = 0
    rows_changed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """All that the adapter does to one parameter of the model: `replacement` first (if any), then the terms in order.

    The parameter is read as a matrix of `cols` columns; for fused experts (E, out, in) that is E·out rows.
    """

    param: str
    shape: tuple[int, ...]  # of the parameter afterwards: a resized vocabulary has other rows
    cols: int
    replacement: TensorInfo | None
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why tensors of the adapter could not be bound. `code` is the rule that explains it."""

    code: str
    where: str
    found: str
    expected: str
    do: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """Every tensor of the adapter, bound to the parameter it changes or named in a problem."""

    updates: Mapping[str, Update]  # by parameter (or by checkpoint tensor, for adapters of an older name generation)
    used: Mapping[str, str]  # adapter tensor → module it was bound to
    frozen: Mapping[str, TensorInfo]  # by parameter: the matrix that training started from, as the adapter saved it
    copies: Mapping[str, str]  # adapter tensor → the one that it must repeat
    leftover: tuple[str, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Untied:
    """A tied group that becomes separate tensors: `stored` is the member on disk, `added` are written anew."""

    members: tuple[str, ...]
    stored: str
    added: tuple[str, ...]
    n_bytes: int  # by which the model grows
    why: str


@dataclass(frozen=True, slots=True)
class Settled:
    """Updates after the ties were decided: every member of a group has its own, or all share one."""

    updates: Mapping[str, Update]
    untied: tuple[Untied, ...]
    tie_flags: tuple[tuple[str, ...], ...]  # paths in config.json that turn false
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One diagnostic: what was found, where (file: tensor), what was expected, what to do."""

    code: str
    name: str
    severity: Severity
    where: str
    found: str
    expected: str
    do: str


# ---------------------------------------------------------------------------------------------- what will be done


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may choose about the bytes of a merge."""

    tied: TiedPolicy = "auto"
    dtype: str | None = None  # of the merged model, e.g. "F32"; None keeps each tensor's own
    tokenizer: TokenizerPolicy = "auto"  # auto: the adapter's when it extends the base's
    ignore: tuple[str, ...] = ()  # rule codes whose findings do not stop the merge, where the rule allows it


@dataclass(frozen=True, slots=True)
class Source:
    """Where an operation's rows come from: a tensor of the base or a full tensor of the adapter, from `row` on."""

    origin: Origin
    tensor: TensorInfo
    row: int = 0


@dataclass(frozen=True, slots=True)
class Operation:
    """One tensor of the output: rows of `source`, changed by `terms`, rounded once to `dtype`, written at `begin`.

    The tensor is handled as a matrix of `cols` columns in blocks of `block_rows` rows; the last block takes the tail
    (so it has between block_rows and 2·block_rows − 1 rows, or all rows of a tensor smaller than a block).
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

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return math.prod(self.shape) // self.cols if self.cols else 0

    @property
    def is_copy(self) -> bool:
        """True when the output's bytes are the source's bytes."""
        return not self.terms and self.dtype == self.source.tensor.dtype


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


# ---------------------------------------------------------------------------------------------- what was done


@dataclass(frozen=True, slots=True)
class Receipt:
    """The record beside a finished merge: enough to repeat it and to recognise its files."""

    schema: int
    plan_id: str
    base: str
    base_fingerprint: str
    adapter: str
    adapter_sha256: str
    options: Options
    kernel: str  # library, version and BLAS core whose rounding the bytes carry
    versions: Mapping[str, str]
    sha256: Mapping[str, str]  # every file of the output but this one
    untied: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Staged:
    """A complete output that is not visible yet: `folder` becomes `out` by one rename."""

    folder: Path
    out: Path
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was verified: how many items were looked at, and what was wrong."""

    name: str
    ok: bool
    n_checked: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TensorVerdict:
    """A tensor of the merged model that is not what base + adapter gives.

    `applied` is the share of the update that is in the file, by projection: 1 is right, 0 is the base, 2 is twice.
    """

    tensor: str
    status: Literal["missing", "unchanged", "wrong", "changed", "shape", "dtype"]
    n_wrong: int
    n_checked: int
    max_error: float
    applied: float | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LogitsReport:
    """Unmerged (base + live adapter) against merged (loaded from disk), over all positions of all prompts."""

    n_positions: int
    max_abs_diff: float
    mean_kl: float  # nats, KL(unmerged ‖ merged)
    max_kl: float
    top1_agreement: float  # share of positions, 0 to 1
    kl_to_base: float  # KL(unmerged ‖ bare base); zero means that the adapter does nothing
    new_token_mean_kl: float | None  # over prompts made of tokens beyond the base's vocabulary, or of trained rows
    dtype: str
    witness: str  # the library that applied the adapter, with its version


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a verification."""

    ok: bool
    checks: tuple[Check, ...]
    wrong: tuple[TensorVerdict, ...] = ()
    logits: LogitsReport | None = None
