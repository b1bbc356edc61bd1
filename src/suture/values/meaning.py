"""What an adapter means: which parameter gets what, and what is wrong with that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from suture.values.disk import TensorInfo

Severity = Literal["error", "warning", "info"]


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
