"""Plan → staged files → the output folder: the only writer of model bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import threadpoolctl

from suture.execute import fused
from suture.execute.claim import check_output, claiming, giving_up, hand_over
from suture.execute.device import Device
from suture.execute.disk import writing
from suture.execute.forecast import memory, seconds, workers_within
from suture.execute.hashing import counts_of, hashes_of, hashes_of_read
from suture.execute.inputs import Inputs, check_inputs, require_unchanged, state
from suture.execute.journal import Head, boot_id
from suture.execute.kernel import Formulas, Kernel, Readers, check_computable
from suture.execute.local import Progress, Queue, Worker, work
from suture.execute.pieces import Piece, division, split
from suture.execute.prefix import Hash
from suture.execute.probe import probe
from suture.execute.publish import abandon, publish
from suture.execute.receipt import RECEIPT, Made, kernel_name, make_receipt, receipt_bytes
from suture.execute.staging import Stage
from suture.execute.stop import Stop, stop_signals
from suture.execute.whole import require_linkable, whole_files
from suture.factors import FactorReader
from suture.formats import TensorReader
from suture.formats.quantized.requantize import libraries
from suture.planning.codec import plan_id
from suture.values import Forecast, KeptUpdates, Plan, Receipt, Running, Staged

__all__ = [
    "Inputs",
    "Progress",
    "Stop",
    "abandon",
    "check_output",
    "forecast",
    "giving_up",
    "publish",
    "run",
    "stop_signals",
]


def run(
    plan: Plan,
    inputs: Inputs,
    out: Path,
    running: Running | None = None,
    progress: Progress | None = None,
    kept: KeptUpdates | None = None,
) -> Staged:
    """Write all that the plan says into a hidden folder beside `out`. Then `publish` it, or `abandon` it.

    A run that was killed is continued by the next run of the same plan. A failure leaves nothing behind, except that
    what is done stays, to be continued, when the system could not read an input or the disk filled up.

    Args:
        running: workers, durability, hashes … The bytes do not depend on it, but for a device.
        progress: called with the bytes written since its last call; `plan.n_bytes_written` in all.
        kept: what rounding leaves of the updates, for the receipt.

    Raises:
        InputError: an input cannot be read; InputChanged: it is not what the plan was made from.
        OutputError, OutputExists, OutputLocked, DiskFull: the output cannot be written.
        UsageError: the device or the memory that is allowed will not do. Interrupted: Ctrl-C or SIGTERM.
    """
    running = running or Running()
    check_inputs(plan, inputs)
    check_computable(plan, inputs)
    whole = whole_files(plan, inputs, tell=running.link)
    links, pieces, workers, formulas = _means(plan, running, whole)
    with stop_signals() as stop, claiming(out, identity := plan_id(plan)) as claimed:
        require_linkable(claimed, links)
        written = [file for file in plan.files if file.name not in links]
        stage = Stage(claimed, written, stop, durable=running.durable)
        with closing(stage), threadpoolctl.threadpool_limits(1, "blas"):
            kernel, before = kernel_name(formulas, _quantizers(plan, inputs)), state(plan, inputs)
            head = Head(identity, state(plan, inputs, strict=True), kernel, division(pieces), boot_id())
            stage.open(head, pieces)
            there = stage.clone({} if running.link else whole)
            done = stage.done | {piece.number for piece in pieces if piece.file in there}
            sha256 = _side_files(plan, inputs, stage)
            hashes = hashes_of(written, stage, pieces, done) if running.hashes else counts_of(written, pieces, done)
            left = [piece for piece in pieces if piece.number not in done]
            _weights(plan, inputs, stage, left, _Team(workers, formulas, hashes), progress)
            base_sha256 = hashes_of_read(_shards(inputs), stage, workers) if running.hash_inputs else {}
            require_unchanged(plan, inputs, before)
            stage.link(links)
            if running.hashes:
                sha256 |= {name: hashes[name].hexdigest() for name in hashes} | hashes_of_read(links, stage, workers)
            made = Made(identity, sha256, base_sha256, tuple(sorted(links)), kept)
            _end(stage, receipt := make_receipt(plan, inputs, kernel, made))
        return hand_over(claimed, receipt)


def _means(
    plan: Plan, running: Running, whole: Mapping[str, Path]
) -> tuple[Mapping[str, Path], tuple[Piece, ...], int, Formulas | None]:
    """The files that become links, the pieces of all others, how many work on them, and with what."""
    links = whole if running.link else {}
    pieces = split(plan, links)
    workers = workers_within(plan, running, len(pieces))
    return links, pieces, workers, Device(running.device) if running.device else fused.load()


def _end(stage: Stage, receipt: Receipt) -> None:
    """Write the receipt, and wait until the disk has everything."""
    stage.text(RECEIPT, receipt_bytes(receipt))
    stage.wait_for_disk()
    stage.check()


def forecast(plan: Plan, inputs: Inputs, out: Path | None, running: Running | None = None) -> Forecast:
    """What `run` will read, write and hold; and how long it will take, if it is known where to.

    Raises:
        UsageError: the device or the memory that is allowed will not do.
        InputError: an input cannot be read. OutputError, DiskFull: nothing can be written beside `out`.
    """
    running = running or Running()
    whole = whole_files(plan, inputs, tell=True) if running.link else {}
    links, pieces, workers, formulas = _means(plan, running, whole)
    linked = sum(file.n_bytes for file in plan.files if file.name in links)
    took = None
    if out is not None:
        check_output(out)
        beside = next(p for p in out.resolve().parents if p.exists())
        with writing(beside), threadpoolctl.threadpool_limits(1, "blas"):
            rates = probe(pieces, inputs, beside, formulas, durable=running.durable)
        took = seconds(pieces, rates, workers)
    computed = sum(op.end - op.begin for op in plan.operations if not op.is_copy)
    return Forecast(
        plan=plan,
        n_bytes_read=plan.n_bytes_read - linked,
        n_bytes_computed=computed,
        n_bytes_copied=plan.n_bytes_written - computed - linked,
        n_bytes_disk=plan.n_bytes_written - linked + _small_bytes(plan, inputs),
        n_bytes_memory=memory(plan, workers),
        workers=workers,
        kernel=kernel_name(formulas, _quantizers(plan, inputs)),
        seconds=took,
    )


def _quantizers(plan: Plan, inputs: Inputs) -> str:
    """The libraries whose versions decide what weights are quantised to."""
    return libraries(inputs.checkpoint.packed[op.part_of] for op in plan.operations if op.part_of)


def _shards(inputs: Inputs) -> dict[str, Path]:
    """The weight files of the base, by name."""
    return {shard.name: inputs.checkpoint.folder / shard.name for shard in inputs.checkpoint.shards}


def _small_bytes(plan: Plan, inputs: Inputs) -> int:
    """Size of all files but the weights; of the receipt, roughly."""
    texts = sum(len(text.encode()) for text in plan.texts.values())
    sides = sum((inputs.folder(side.origin) / side.name).stat().st_size for side in plan.side_files)
    return texts + sides + 128 * (len(plan.files) + len(plan.side_files) + len(plan.texts) + 20)


def _side_files(plan: Plan, inputs: Inputs, stage: Stage) -> dict[str, str]:
    """Write all files but the weights; their sha256 by name."""
    sha256 = {name: stage.text(name, text.encode()) for name, text in sorted(plan.texts.items())}
    return sha256 | {side.name: stage.copy(side.name, inputs.folder(side.origin)) for side in plan.side_files}


@dataclass(frozen=True, slots=True)
class _Team:
    """Who writes the weights, with what, and what keeps the files' hashes."""

    n_workers: int
    formulas: Formulas | None
    hashes: Mapping[str, Hash]


def _weights(
    plan: Plan, inputs: Inputs, stage: Stage, left: Sequence[Piece], team: _Team, progress: Progress | None
) -> None:
    """Write the pieces that are not there yet."""
    if progress is not None:
        progress(plan.n_bytes_written - sum(piece.n_bytes for piece in left))
    with TensorReader.of(inputs.checkpoint) as base, TensorReader(inputs.adapter.folder) as adapter:
        factors = FactorReader(inputs.adapter.tensors, adapter)
        readers: Readers = {"base": base, "adapter": adapter}
        workers = [Worker(stage, Kernel(readers, factors, team.formulas), team.hashes) for _ in range(team.n_workers)]
        work(workers, Queue(left), stage.stop, progress)
