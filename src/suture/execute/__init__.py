"""Plan → staged files → the output folder: the only writer of model bytes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import threadpoolctl

from suture.execute.claim import check_output, claiming, giving_up, hand_over
from suture.execute.inputs import Inputs, check_inputs, require_unchanged, state
from suture.execute.journal import Head, boot_id
from suture.execute.kernel import check_computable
from suture.execute.local import Progress, Queue, Worker, count_workers, work
from suture.execute.pieces import Piece, division, header_bytes, split
from suture.execute.prefix import PrefixHash
from suture.execute.publish import abandon, publish
from suture.execute.receipt import RECEIPT, kernel_name, make_receipt, receipt_bytes
from suture.execute.staging import Stage
from suture.execute.stop import Stop, stop_signals
from suture.factors import FactorReader
from suture.formats import TensorReader
from suture.planning.codec import plan_id
from suture.values import Plan, Staged

__all__ = ["Inputs", "Progress", "Stop", "abandon", "check_output", "giving_up", "publish", "run", "stop_signals"]


def run(
    plan: Plan,
    inputs: Inputs,
    out: Path,
    *,
    workers: int | None = None,
    durable: bool = True,
    progress: Progress | None = None,
) -> Staged:
    """Write all that the plan says into a hidden folder beside `out`. Then `publish` it, or `abandon` it.

    A run that was killed is continued by the next run of the same plan. A failure leaves nothing behind, except that
    what is done stays, to be continued, when the system could not read an input or the disk filled up.

    Args:
        workers: threads; as many as there are cores by default. The bytes do not depend on it.
        durable: return only when the disk holds every byte (fsync).
        progress: called with the bytes written since its last call; `plan.n_bytes_written` in all.

    Raises:
        InputError: an input cannot be read; InputChanged: it is not what the plan was made from.
        OutputError, OutputExists, OutputLocked, DiskFull: the output cannot be written.
        Interrupted: Ctrl-C or SIGTERM.
    """
    pieces = split(plan)
    check_inputs(plan, inputs)
    check_computable(plan, inputs)
    with stop_signals() as stop, claiming(out, plan_id(plan)) as claimed:
        stage = Stage(claimed, plan, stop, durable=durable)
        with closing(stage), threadpoolctl.threadpool_limits(1, "blas"):
            kernel, before = kernel_name(), state(plan, inputs)
            head = Head(plan_id(plan), state(plan, inputs, strict=True), kernel, division(pieces), boot_id())
            stage.open(head, pieces)
            sha256 = _side_files(plan, inputs, stage)
            sha256 |= _weights(plan, inputs, stage, pieces, workers, progress)
            require_unchanged(plan, inputs, before)
            receipt = make_receipt(plan, inputs, kernel, sha256)
            stage.text(RECEIPT, receipt_bytes(receipt))
            stage.wait_for_disk()
            stage.check()
        return hand_over(claimed, receipt)


def _side_files(plan: Plan, inputs: Inputs, stage: Stage) -> dict[str, str]:
    """Write all files but the weights; their sha256 by name."""
    sha256 = {name: stage.text(name, text.encode()) for name, text in sorted(plan.texts.items())}
    return sha256 | {side.name: stage.copy(side.name, inputs.folder(side.origin)) for side in plan.side_files}


def _weights(
    plan: Plan,
    inputs: Inputs,
    stage: Stage,
    pieces: Sequence[Piece],
    workers: int | None,
    progress: Progress | None,
) -> dict[str, str]:
    """Write the pieces that are not there yet; the sha256 of each weight file by name."""
    hashes = _hashes(plan, stage, pieces)
    left = [piece for piece in pieces if piece.number not in stage.done]
    if progress is not None:
        progress(plan.n_bytes_written - sum(piece.n_bytes for piece in left))
    with TensorReader(inputs.checkpoint.folder) as base, TensorReader(inputs.adapter.folder) as adapter:
        factors = FactorReader(inputs.adapter.tensors, adapter)
        team = [
            Worker(stage, {"base": base, "adapter": adapter}, factors, hashes)
            for _ in range(count_workers(workers, len(pieces)))
        ]
        work(team, Queue(left), stage.stop, progress)
    return {name: hashes[name].hexdigest() for name in sorted(hashes)}


def _hashes(plan: Plan, stage: Stage, pieces: Sequence[Piece]) -> dict[str, PrefixHash]:
    """The hash of each weight file, with its header, and told of the pieces that are there."""
    bounds = {file.name: [0, file.n_bytes] for file in plan.files}
    for piece in pieces:
        bounds[piece.file].append(piece.begin)
    hashes = {name: PrefixHash(bounds[name], partial(stage.read, name)) for name in bounds}
    for file in plan.files:
        hashes[file.name].feed(0, memoryview(header_bytes(file)))
        hashes[file.name].finish(0)
    for piece in pieces:
        if piece.number in stage.done:
            hashes[piece.file].finish(piece.begin)
    return hashes
