"""What a model is, from its class alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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


_MISFIT = re.compile(r"^gives |different shapes|do not fit|into pieces of")  # in `Arch.opaque`


@dataclass(frozen=True, slots=True)
class Arch:
    """What a model is, from its class alone: names, shapes, kinds, ties, and how files become parameters."""

    model_class: str
    source: str  # "transformers 5.23.0", "table of transformers 5.23.0"; "headers" when Transformers lacks the class
    params: Mapping[str, Param]  # in the class's order of declaration
    parts: tuple[Part, ...]
    ties: tuple[Tie, ...]
    tie_flags: tuple[tuple[str, ...], ...]  # paths in config.json that say "tied" and must turn false on untying
    input_embedding: str | None  # module path
    output_embedding: str | None
    opaque: Mapping[str, str] = field(default_factory=dict)  # checkpoint tensor → conversion that Parts cannot express
    unknown: tuple[str, ...] = ()  # checkpoint tensors that the model class does not have

    @property
    def misfits(self) -> Mapping[str, str]:
        """Those of `opaque` that no loader can put together: a tensor is missing, or has another shape."""
        return {name: why for name, why in self.opaque.items() if _MISFIT.search(why)}

    @property
    def n_params(self) -> int:
        """Number of values of the class, tied parameters counted once."""
        followers = {member for tie in self.ties for member in tie.members[1:]}
        return sum(math.prod(p.shape) for name, p in self.params.items() if name not in followers)
