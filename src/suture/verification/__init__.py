"""Proof that a merged folder is what base + adapter gives, by its own reading path and by the forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from suture.errors import MissingExtra, SutureError
from suture.planning.codec import plan_id
from suture.values import Adapter, Check, Checkpoint, Plan, Verdict
from suture.verification import hashes, reading
from suture.verification.compare import Manner, Progress
from suture.verification.hashes import options_of
from suture.verification.replay import check_folder, replay, replay_adapter
from suture.verification.rounding import FORMATS, QUANTIZED
from suture.verification.structure import check_planned

if TYPE_CHECKING:
    from suture.verification.logits import LogitsSettings

__all__ = ["options_of", "replay", "replay_adapter", "verify_folder"]


def verify_folder(  # noqa: PLR0913 - four inputs and three choices of how to look
    plan: Plan,
    checkpoint: Checkpoint,
    adapter: Adapter,
    folder: Path,
    *,
    full: bool = False,
    logits: LogitsSettings | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Verify a merged folder of any tool: receipt, structure, every tensor, and the forward pass if asked.

    A folder whose receipt names this plan is held to all that the plan promises: see `replay`. Any other may have
    other shards, another float dtype, tied tensors stored once or twice, and more than one rounding; what is let pass
    is told in the checks.

    Args:
        full: every row and byte instead of a sample of every tensor.
        logits: also compare the merged model's logits with those of base + adapter.

    Raises:
        InputError: a folder cannot be read.
        MissingExtra, SutureError: the logits cannot be computed, and nothing else was wrong.
    """
    receipt = hashes.read_receipt(folder)
    ours = receipt is not None and receipt.plan_id == plan_id(plan)
    before = hashes.check(folder, plan, checkpoint.folder)
    if ours:
        before += check_planned(plan, checkpoint, adapter, folder)
    verdict = check_folder(plan, checkpoint, adapter, folder, Manner(full, strict=ours, progress=progress), before)
    if logits is None:
        return verdict
    from suture.verification import logits as forward  # its modules are many

    try:
        report = forward.logits(checkpoint, adapter, folder, settings=logits)
    except MissingExtra:
        raise
    except SutureError as error:
        if verdict.ok:
            raise
        return _with_check(verdict, Check("logits", False, 0, f"not run: {error.found}"))
    return _with_check(replace(verdict, logits=report), forward.logits_check(report, _coarsest(plan, folder)))


def _with_check(verdict: Verdict, check: Check) -> Verdict:
    return replace(verdict, ok=verdict.ok and check.ok, checks=(*verdict.checks, check))


def _coarsest(plan: Plan, folder: Path) -> str:
    """The dtype with the fewest bits among the tensors that the merge computed, as they are stored; or QUANTIZED."""
    if any(op.part_of for op in plan.operations):
        return QUANTIZED
    stored = reading.read_folder(folder, (file.name for file in plan.files)).tensors
    computed = (op.tensor for op in plan.operations if not op.is_copy)
    dtypes = {stored[name].dtype for name in computed if name in stored} & FORMATS.keys()
    return max(sorted(dtypes), key=lambda name: FORMATS[name].unit, default="F32")
