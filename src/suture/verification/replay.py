"""The proof without a model: the folder's structure, and every tensor recomputed from the inputs."""

from __future__ import annotations

from pathlib import Path

from suture.values import Adapter, Check, Checkpoint, Plan, TensorVerdict, Verdict
from suture.verification import configs, names, reading, structure
from suture.verification.compare import Manner, Progress, compare
from suture.verification.expect import Inputs


def replay(
    plan: Plan,
    checkpoint: Checkpoint,
    adapter: Adapter,
    folder: Path,
    *,
    full: bool,
    progress: Progress | None = None,
) -> Verdict:
    """Verify a folder that this plan wrote: names, places, texts and copies as planned, values rounded once.

    Args:
        full: every row and byte; else a sample of every tensor, drawn from its name.
        progress: called with the bytes of each tensor when it is done.

    Raises:
        InputError: the folder, or an input, cannot be read.
    """
    own = structure.check_planned(plan, checkpoint, adapter, folder)
    return check_folder(plan, checkpoint, adapter, folder, Manner(full, strict=True, progress=progress), own)


def replay_adapter(plan: Plan, checkpoint: Checkpoint, adapter: Adapter, folder: Path) -> Verdict:
    """Verify an adapter that a plan wrote: header, texts and files as planned, every tensor recomputed or compared.

    Raises:
        InputError: the folder, or an input, cannot be read.
    """
    _, named, values, wrong = _compare(plan, checkpoint, adapter, folder, Manner(True, strict=True, progress=None))
    return _verdict((*structure.check_planned(plan, checkpoint, adapter, folder), named, *values), wrong)


def check_folder(
    plan: Plan, checkpoint: Checkpoint, adapter: Adapter, folder: Path, manner: Manner, before: tuple[Check, ...] = ()
) -> Verdict:
    """Structure and values of a folder; `before` are checks that were made already.

    Tensors are matched by name and read by the folder's own headers, so that merges of any tool can be judged. Unless
    `manner.strict`, other shards, another float dtype and more than one rounding are let pass and told.
    """
    stored, named, values, wrong = _compare(plan, checkpoint, adapter, folder, manner)
    checks = (
        *before,
        *structure.check(folder, stored, frozenset(side.name for side in plan.side_files)),
        named,
        *configs.check(plan, _written(plan, checkpoint), folder, stored.tensors),
        *values,
    )
    return _verdict(checks, wrong)


def _written(plan: Plan, checkpoint: Checkpoint) -> Checkpoint:
    """The base in the form that the plan writes: dense, or as it is stored."""
    return checkpoint.as_stored if plan.options.output == "same" else checkpoint


def _compare(
    plan: Plan, checkpoint: Checkpoint, adapter: Adapter, folder: Path, manner: Manner
) -> tuple[reading.Stored, Check, tuple[Check, ...], tuple[TensorVerdict, ...]]:
    """A folder's headers, the check of its names, those of its values, and the tensors that are missing or wrong."""
    stored = reading.read_folder(folder, (file.name for file in plan.files))
    inputs = Inputs.of(checkpoint, adapter)
    matched = names.match(plan, inputs, folder, stored.tensors, strict=manner.strict)
    values, wrong = compare(plan, inputs, folder, matched.found, manner)
    return stored, matched.check, values, (*matched.wrong, *wrong)


def _verdict(checks: tuple[Check, ...], wrong: tuple[TensorVerdict, ...]) -> Verdict:
    return Verdict(all(check.ok for check in checks) and not wrong, checks, wrong)
