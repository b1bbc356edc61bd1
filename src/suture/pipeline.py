"""The straight line, and the first file to read: headers → resolve → diagnose → plan → execute → verify → publish."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from suture.arch import describe
from suture.beside import look_beside
from suture.equality import Equality
from suture.errors import Findings, OutputError, SutureError
from suture.formats import file_sha256, fingerprint, read_adapter, read_dense
from suture.formats.ledger import ledger_or_problem
from suture.measures import kept, measure, survival
from suture.onto import onto
from suture.planning import Identity, build_plan, draft_operations, settle
from suture.planning.requantize import require_possible
from suture.resolve import resolve
from suture.rules import diagnose, ignorable
from suture.rules.base import Case
from suture.rules.n512_update_erased import survived
from suture.sides import choose_side_files
from suture.stats import adapter_stats, frozen_copies
from suture.values import (
    Adapter,
    Arch,
    Check,
    Checkpoint,
    Forecast,
    Json,
    Options,
    Plan,
    Receipt,
    Resolved,
    Running,
    Verdict,
)

if TYPE_CHECKING:
    from suture.execute import Inputs, Stop
    from suture.verification.logits import LogitsSettings

Depth = Literal["headers", "values", "samples"]
Progress = Callable[[str, int, int], None]  # stage, bytes done since the last call, bytes in all


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read BASE and ADAPTER: folders or Hub ids."""

    base_revision: str | None = None
    adapter_revision: str | None = None
    adapter_name: str | None = None
    allow_pickle: bool = False


def read_base(base: str | Path, reading: Reading) -> Checkpoint:
    """The model, or the dense one that it stands for."""

    def shapes(config: Json) -> dict[str, tuple[int, ...]]:
        return {name: param.shape for name, param in describe(config, {}).params.items()}

    return read_dense(base, revision=reading.base_revision, allow_pickle=reading.allow_pickle, shapes=shapes)


def load_case(
    base: str | Path,
    adapter: str | Path,
    options: Options,
    reading: Reading,
    depth: Depth = "headers",
) -> Case:
    """Read both sides and bind them; `depth` says how much is read: see `make_case`."""
    checkpoint = read_base(base, reading)
    tuned = read_adapter(
        adapter, name=reading.adapter_name, revision=reading.adapter_revision, allow_pickle=reading.allow_pickle
    )
    return bind(checkpoint, tuned, options, depth)


def bind(checkpoint: Checkpoint, adapter: Adapter, options: Options, depth: Depth = "headers") -> Case:
    """What `load_case` makes of the two sides once they are read."""
    arch = describe(checkpoint.config, checkpoint.tensors)
    checkpoint = onto(checkpoint, arch, ledger_or_problem(adapter.folder)[0], options)
    return make_case(checkpoint, adapter, arch, options, depth)


def make_case(checkpoint: Checkpoint, adapter: Adapter, arch: Arch, options: Options, depth: Depth = "headers") -> Case:
    """Bind an adapter to a base and decide the ties.

    Args:
        depth: "headers"; or with the adapter's "values" and a fingerprint of the base, as every merge needs them; or
            with "samples" of the base's rows too, which tell what their updates do to them.
    """
    deep = depth != "headers"
    resolved = resolve(checkpoint, adapter, arch)
    with Equality(checkpoint, adapter) as equality:
        settled = settle(checkpoint, arch, resolved, options.tied, equality.same_update, equality.same_stored)
        uneven = tuple(a for a, b in resolved.copies.items() if not equality.same_tensor(a, b)) if deep else ()
    draft = draft_operations(checkpoint, arch, settled, options)
    if options.output == "same":
        require_possible(checkpoint, draft.operations, options)
    sides = choose_side_files(checkpoint, adapter, options)
    ledger, problem = ledger_or_problem(adapter.folder)
    sampled = depth == "samples"
    measures = measure(checkpoint, adapter, arch, resolved, draft.operations, sides.n_tokens) if sampled else None
    return Case(
        checkpoint,
        adapter,
        arch,
        resolved,
        settled,
        draft,
        options,
        stats=adapter_stats(adapter) if deep else None,
        frozen=frozen_copies(checkpoint, adapter, _frozen_pairs(resolved, arch)) if deep else None,
        uneven=uneven,
        ledger=ledger,
        ledger_problem=problem,
        sides=sides,
        beside=look_beside(checkpoint, adapter),
        base_fingerprint=fingerprint(checkpoint) if deep and checkpoint.tensors else None,
        adapter_sha256=file_sha256(adapter.folder / adapter.file) if deep and adapter.tensors else None,
        measures=measures,
        survival=survival(checkpoint, adapter, draft.operations) if deep and options.output == "same" else (),
    )


def plan(
    base: str | Path, adapter: str | Path, *, options: Options | None = None, reading: Reading | None = None
) -> Plan:
    """What a merge would do: every decision, every tensor, every byte's place.

    Raises:
        Findings: the merge would refuse.
    """
    return plan_of(load_case(base, adapter, options or Options(), reading or Reading(), "values"))


def forecast(
    base: str | Path,
    adapter: str | Path,
    out: str | Path | None = None,
    *,
    options: Options | None = None,
    reading: Reading | None = None,
    running: Running | None = None,
) -> Forecast:
    """The plan of a merge, and what it will cost: bytes, disk, memory; and the time, measured beside `out`, if given.

    Raises:
        Findings: the merge would refuse. OutputError: nothing could be written there.
    """
    from suture import execute

    case = load_case(base, adapter, options or Options(), reading or Reading(), "values")
    todo, inputs = plan_of(case), execute.Inputs(case.checkpoint, case.adapter)
    found = execute.forecast(todo, inputs, None if out is None else Path(out), running)
    return replace(found, kept=kept(case.checkpoint, case.adapter, todo.operations))


def plan_of(case: Case) -> Plan:
    """The plan of a case without errors.

    Raises:
        Findings: the case has errors that its options do not ignore.
    """
    findings = diagnose(case)
    blocking = [f for f in findings if f.severity == "error" and not ignorable(f, case.options)]
    if blocking:
        raise Findings(findings, do="Nothing was written.")
    if left := case.resolved.leftover:
        # Every way to get here is covered by a rule; a rule that can be ignored must never end in a lost tensor.
        raise SutureError(
            f"{len(left)} tensors of the adapter were not used: {', '.join(left[:3])}",
            where=case.adapter.file,
            expected="every tensor used exactly once",
            do="Nothing was written. Please report this as a bug.",
        )
    of_base = case.base_fingerprint or fingerprint(case.checkpoint)
    of_adapter = case.adapter_sha256 or file_sha256(case.adapter.folder / case.adapter.file)
    identity = Identity(of_base, of_adapter)
    return build_plan(
        case.checkpoint,
        case.draft,
        case.settled,
        identity,
        case.sides,
        case.options,
        (
            *(f"merged onto BASE's own weights (--onto original), but {f.found}" for f in findings if f.code == "A212"),
            *([survived(case.survival)] if case.survival else []),
        ),
    )


def merge(  # noqa: PLR0913 - keywords of the public interface
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    options: Options | None = None,
    reading: Reading | None = None,
    running: Running | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Merge an adapter into a base model. `out` appears whole and verified, or not at all.

    Raises:
        Findings: something is wrong with the pair; all of it is listed.
        OutputError: the output cannot be written, or holds files already.
        NotVerified: the written files are not what base + adapter gives.
    """
    from suture import execute

    running = running or Running()
    execute.check_output(Path(out))
    case = load_case(base, adapter, options or Options(), reading or Reading(), "values")
    inputs = execute.Inputs(case.checkpoint, case.adapter)
    require_outside(Path(out), inputs)
    todo = plan_of(case)
    if running.announce is not None:
        running.announce(todo)
    return carry_out(todo, inputs, Path(out), running, progress)


def carry_out(todo: Plan, inputs: Inputs, out: Path, running: Running, progress: Progress | None) -> Receipt:
    """Write what a plan says, verify it, and only then let it appear.

    Raises:
        OutputError, InputError, NotVerified: see `merge`.
    """
    from suture import execute
    from suture.verification import replay

    with execute.stop_signals() as stop:
        staged = execute.run(
            todo,
            inputs,
            out,
            running,
            _stage(progress, "merge", todo.n_bytes_written),
            kept(inputs.checkpoint, inputs.adapter, todo.operations),
        )
        with execute.giving_up(staged):
            verdict = replay(
                todo,
                inputs.checkpoint,
                inputs.adapter,
                staged.folder,
                full=running.full_verify,
                progress=_until(stop, out, _stage(progress, "verify", todo.n_bytes_written)),
            )
            stop.check(out)
        execute.publish(staged, verdict)
    return staged.receipt


def require_outside(out: Path, inputs: Case | Inputs) -> None:
    """Refuse an output inside of a folder that is read: it would be one of that folder's files from then on.

    Raises:
        OutputError: it is.
    """
    for folder in (inputs.checkpoint.folder, inputs.adapter.folder):
        if out.resolve().is_relative_to(folder.resolve()):
            raise OutputError(
                f"the output would lie inside of {folder}, which is read",
                where=str(out),
                expected="a folder beside it",
                do="Choose another one. Nothing was written.",
            )


def verify(  # noqa: PLR0913 - keywords of the public interface
    base: str | Path,
    adapter: str | Path,
    merged: str | Path,
    *,
    options: Options | None = None,
    reading: Reading | None = None,
    full: bool = False,
    logits: LogitsSettings | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Prove that a merged folder, ours or another tool's, is what base + adapter gives.

    Args:
        options: None takes those of the receipt in the folder, if there is one, and says so.
        full: recompute every row instead of a sample.
        logits: also compare the forward pass with that of the unmerged model.
    """
    from suture.verification import options_of, verify_folder

    chosen = options or options_of(Path(merged)) or Options()
    case = load_case(base, adapter, chosen, reading or Reading(), "values")
    todo = plan_of(case)
    verdict = verify_folder(
        todo,
        case.checkpoint,
        case.adapter,
        Path(merged),
        full=full,
        logits=logits,
        progress=_stage(progress, "verify", todo.n_bytes_written),
    )
    if options is not None or not (told := _told(chosen)):
        return verdict
    return replace(
        verdict, checks=(Check("options", True, len(told), f"as the receipt says: {' '.join(told)}"), *verdict.checks)
    )


def _told(options: Options) -> list[str]:
    """What differs from the defaults, as the command line writes it."""
    changed = ((f.name, getattr(options, f.name)) for f in fields(Options) if getattr(options, f.name) != f.default)
    given = [(name, value if isinstance(value, tuple) else (value,)) for name, value in changed]
    return [f"--{name.replace('_', '-')} {str(v).lower() if name == 'dtype' else v}" for name, vs in given for v in vs]


def _stage(progress: Progress | None, stage: str, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    return lambda n_bytes: progress(stage, n_bytes, total)


def _until(stop: Stop, out: Path, progress: Callable[[int], None] | None) -> Callable[[int], None]:
    """The same progress, which raises Interrupted when the merge is to end."""

    def advance(n_bytes: int) -> None:
        stop.check(out)
        if progress is not None:
            progress(n_bytes)

    return advance


def _frozen_pairs(resolved: Resolved, arch: Arch) -> Mapping[str, str]:
    """Copies of base matrices in the adapter → the base tensor that each should equal."""
    tensors = {part.param: part.tensor for part in arch.parts if not part.index}
    return {t.name: tensors[param] for param, t in resolved.frozen.items() if param in tensors}
