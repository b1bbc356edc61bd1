"""What a training run knows and proves: records of tensors, the audit, the ledger, measurements and the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from suture.values.disk import Json

Stage = Literal["before", "after", "reloaded", "merged"]


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One trainable tensor, under the key that it has in an adapter file."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # a name of the safetensors format
    group: str  # one of groups.GROUPS
    lr: float | None  # the group's peak learning rate; None where no optimiser was seen

    @property
    def n_values(self) -> int:
        """Number of elements."""
        n = 1
        for size in self.shape:
            n *= size
        return n


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One line of the audit: the trainable tensors of a group."""

    group: str
    n_tensors: int
    n_params: int
    dtypes: tuple[str, ...]
    lrs: tuple[float, ...]  # peak learning rates; empty where no optimiser was seen


@dataclass(frozen=True, slots=True)
class Difference:
    """One disagreement between two accounts of what trains, in words, for one group of tensors."""

    group: str
    found: str
    do: str
    names: tuple[str, ...]
    n_params: int
    code: str = ""  # of the rule that explains it, where there is one


@dataclass(frozen=True, slots=True)
class Audit:
    """What trains, and every way in which that is not what the adapter's config promises."""

    rows: tuple[GroupRow, ...]
    n_trainable: int
    n_total: int
    targets: Mapping[str, int]  # last part of a module's path → low-rank modules of that name
    differences: tuple[Difference, ...]
    probed: bool  # a backward pass has shown which tensors get a gradient
    notes: tuple[str, ...] = ()  # what could not be audited, and why
    ties: tuple[
        str, ...
    ] = ()  # what the adapter does to tied parameters: as it was asked for, and easily meant otherwise

    @property
    def ok(self) -> bool:
        """True when every account agrees."""
        return not self.differences

    @property
    def percent(self) -> float:
        """Share of the values that train, in percent."""
        return 100 * self.n_trainable / self.n_total if self.n_total else 0.0


@dataclass(frozen=True, slots=True)
class BaseRecord:
    """The base model that an adapter was trained on."""

    name: str  # as the run named it: a folder or a Hub id
    fingerprint: str | None  # of formats.fingerprint; None where the files could not be found
    quantize: str | None = None  # the scheme in which it was loaded


@dataclass(frozen=True, slots=True)
class Ancestor:
    """An adapter that a run went on from."""

    name: str  # the folder's name
    sha256: str  # of its weight file
    step: int | None  # None where it has no ledger
    conversions: tuple[str, ...] = ()  # what was changed on the way, in words


@dataclass(frozen=True, slots=True)
class Ledger:
    """What was trained, on what, with what, up to where; one in every checkpoint and adapter folder."""

    version: int
    base: BaseRecord
    tensors: tuple[TensorRecord, ...]
    sha256: Mapping[str, str]  # of every tensor in the file, copies of the base's matrices included
    optimizer: tuple[str, ...]  # the trained tensors in the order of the optimiser's state; empty where none was seen
    adapter_config: Json
    config: Json | None  # of the run; None where a script trained
    data_sha256: str | None
    tokenizer_sha256: str | None
    versions: Mapping[str, str]
    lineage: tuple[Ancestor, ...]
    step: int
    epoch: float
    n_tokens: int  # of the inputs so far, without padding
    metrics: Mapping[str, float]
    files: Mapping[str, str]  # name → sha256 of every other file that a resumption reads


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One logged optimiser step."""

    step: int
    n_steps: int
    epoch: float
    loss: float  # mean over the tokens that count, since the last log
    lrs: Mapping[str, float]  # group → learning rate of the step
    grad_norm: float | None  # before clipping, over all groups
    grad_norms: Mapping[str, float]  # group → norm after clipping
    new_rows_grad_norm: float | None
    n_tokens: int  # of the inputs since the run began, without padding
    tokens_per_second: float  # since the last log, without evaluations
    seconds_left: float
    eval_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Movement:
    """How far a group has moved from its starting values: ‖θ − θ₀‖ / ‖θ₀‖, and rows that have not moved at all."""

    group: str
    relative: float | None  # None where the starting values are all zero
    absolute: float
    n_rows: int  # of embeddings, heads and new tokens; 0 for other groups
    n_still_rows: int
    still_tensors: tuple[str, ...]  # tensors equal to their starting values, byte for byte


@dataclass(frozen=True, slots=True)
class StageLoss:
    """Mean loss over the tokens that count, at one stage of an adapter's life."""

    stage: Stage
    train: float  # on a fixed part of the training set
    eval: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a run."""

    run: Path
    base: str  # as the run named it
    adapter: Path | None  # None when the run was stopped; `checkpoint` then resumes it
    checkpoint: Path | None
    step: int
    n_steps: int
    stages: tuple[StageLoss, ...]
    movements: tuple[Movement, ...]
    curve: tuple[tuple[int, float], ...]  # step, loss
    problems: tuple[str, ...]  # a step that broke what the one before it had, in words
    notes: tuple[str, ...]  # choices that were made, and what was cut or left out
    is_first: bool = True  # of several processes, the first has measured and tells
