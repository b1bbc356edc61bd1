"""What a merge has done, and what a verification found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from suture.values.plan import Options


@dataclass(frozen=True, slots=True)
class Kept:
    """What rounding leaves of an update Δ, if Δ' is what is applied of it."""

    share: float  # ⟨Δ', Δ⟩ / ⟨Δ, Δ⟩
    cosine: float  # between Δ' and Δ
    lost: float  # ‖Δ' − Δ‖ / ‖Δ‖


@dataclass(frozen=True, slots=True)
class KeptUpdates:
    """What rounding leaves of all updates that are written in 16 bits, estimated from rows of some matrices."""

    nearest: Kept
    stochastic: Kept
    n_matrices: int  # looked at


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
    sha256: Mapping[str, str]  # every file of the output but this one; only small files where hashes were not wanted
    untied: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    base_sha256: Mapping[str, str] = field(default_factory=dict)  # weight files of the base, where that was wanted
    linked: tuple[str, ...] = ()  # files that were hard links to the base's when they were made
    kept: KeptUpdates | None = None  # None where no update is written in 16 bits, or none can be sampled


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
