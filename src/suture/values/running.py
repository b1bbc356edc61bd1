"""How a merge is run: nothing here is part of its plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from suture.values.outcome import KeptUpdates
from suture.values.plan import Plan


@dataclass(frozen=True, slots=True)
class Running:
    """Choices that change no byte of the model, but for `device`: another processor may round sums otherwise."""

    workers: int | None = None  # None: as many as there are cores
    durable: bool = True  # fsync before the output appears
    hashes: bool = True  # the sha256 of every output file, in the receipt
    hash_inputs: bool = False  # that of every weight file of the base as well
    link: bool = False  # files that stay as they are become hard links to the base's
    device: str | None = None  # of torch, for the products; None: the CPU, without torch
    max_memory: int | None = None  # bytes; fewer workers are used to stay within
    full_verify: bool = False  # recompute every row instead of a sample
    announce: Callable[[Plan], None] | None = None  # called with the plan before anything is written


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a merge will cost. Bytes of the weights; `seconds` only where it was measured how fast this machine is."""

    plan: Plan
    n_bytes_read: int
    n_bytes_computed: int  # of what is written
    n_bytes_copied: int
    n_bytes_disk: int  # free space that the output needs, small files included
    n_bytes_memory: int  # resident, at its peak
    workers: int
    kernel: str
    seconds: float | None
    kept: KeptUpdates | None = None  # of the updates; None where no update is written in 16 bits
