"""All tensors of a folder against a plan: names matched, each tensor judged, the results told as checks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from threadpoolctl import threadpool_limits

from suture.values import Check, Operation, Plan, TensorInfo, TensorVerdict
from suture.verification import judge, requantized
from suture.verification.expect import Inputs
from suture.verification.judge import Subject, Tally
from suture.verification.reading import FLOATS

Progress: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Manner:
    """How to look: at everything or at a sample, with one rounding only or with what other tools do."""

    full: bool
    strict: bool
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    subject: Subject
    tally: Tally
    verdict: TensorVerdict | None


def compare(
    plan: Plan, inputs: Inputs, folder: Path, found: Mapping[str, TensorInfo], manner: Manner
) -> tuple[tuple[Check, ...], tuple[TensorVerdict, ...]]:
    """Judge every tensor of the plan that is among `found` (by the plan's names)."""
    siblings = _siblings(plan)
    subjects = [Subject(op, inputs, folder, found[op.tensor]) for op in plan.operations if op.tensor in found]

    def one(subject: Subject) -> _Outcome:
        outcome = _judge(subject, manner, siblings[_identity(subject.operation)])
        if manner.progress is not None:
            manner.progress(subject.found.n_bytes)
        return outcome

    with threadpool_limits(limits=1):
        outcomes = _in_threads(one, subjects) if manner.full else [one(subject) for subject in subjects]
    checks = (_copies(outcomes), _changes(outcomes))
    return checks, tuple(o.verdict for o in outcomes if o.verdict is not None)


def _in_threads(one: Callable[[Subject], _Outcome], subjects: Sequence[Subject]) -> list[_Outcome]:
    """All outcomes, in order. Not for a sample: its looks are so short that threads would only wait for each other."""
    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, 8)), "verify") as pool:
        return list(pool.map(one, subjects))


def _identity(operation: Operation) -> tuple[str, str]:
    return operation.source.origin, operation.source.tensor.name


def _siblings(plan: Plan) -> dict[tuple[str, str], list[Operation]]:
    """Operations by their source tensor: a tied pair that is untied starts from one."""
    found: dict[tuple[str, str], list[Operation]] = {}
    for operation in plan.operations:
        found.setdefault(_identity(operation), []).append(operation)
    return found


def _judge(subject: Subject, manner: Manner, siblings: list[Operation]) -> _Outcome:
    operation = subject.operation
    verdict = judge.unjudgeable(subject, strict=manner.strict)
    if verdict is not None:
        return _Outcome(subject, Tally(), verdict)
    if operation.part_of:
        tally = requantized.compare_part(subject, full=manner.full)
        return _Outcome(subject, tally, requantized.verdict(subject, tally) if tally.n_wrong else None)
    others = [s for s in siblings if s.tensor != operation.tensor]
    if judge.is_byte_copy(subject):
        tally = judge.compare_bytes(subject, full=manner.full)
        return _Outcome(subject, tally, _copy_verdict(subject, tally, others) if tally.n_wrong else None)
    tally = judge.compare_values(subject, full=manner.full, strict=manner.strict)
    return _Outcome(subject, tally, _value_verdict(subject, tally, others) if tally.n_wrong else None)


def _copy_verdict(subject: Subject, tally: Tally, siblings: list[Operation]) -> TensorVerdict:
    from suture.verification import diagnose  # only for what is wrong

    name, words, applied = subject.operation.tensor, "", None
    if subject.found.dtype in FLOATS:
        reason = diagnose.why(subject, siblings)
        words, applied = f"{reason.words}; ", reason.applied
    detail = f"{words}{tally.n_wrong} of {tally.n_checked} looked-at bytes differ"
    return TensorVerdict(name, "changed", tally.n_wrong, tally.n_checked, tally.max_error, applied, detail)


def _value_verdict(subject: Subject, tally: Tally, siblings: list[Operation]) -> TensorVerdict:
    from suture.verification import diagnose

    operation = subject.operation
    reason = diagnose.why(subject, siblings)
    status = "changed" if operation.is_copy else "unchanged" if tally.same else "wrong"
    return TensorVerdict(
        operation.tensor,
        status,  # type: ignore[arg-type]
        tally.n_wrong,
        tally.n_checked,
        tally.max_error,
        reason.applied,
        reason.words,
    )


def _copies(outcomes: list[_Outcome]) -> Check:
    """Tensors whose bytes must be those of the base or of the adapter."""
    chosen = [o for o in outcomes if o.subject.operation.is_copy]
    recast = sorted({o.subject.found.dtype for o in chosen if o.subject.found.dtype != o.subject.operation.dtype})
    details = [_looked_at(chosen)]
    if recast:
        details.append(f"stored as {', '.join(recast)}, compared after rounding to that")
    return Check("tensors that stay as they are", _all_right(chosen), len(chosen), "; ".join(details))


def _changes(outcomes: list[_Outcome]) -> Check:
    """Tensors that the plan computes."""
    chosen = [o for o in outcomes if not o.subject.operation.is_copy]
    details = [_looked_at(chosen)]
    recast = sorted({o.subject.found.dtype for o in chosen if o.subject.found.dtype != o.subject.operation.dtype})
    if recast:
        details.append(f"stored as {', '.join(recast)}, compared after rounding to that")
    twice = [o for o in chosen if o.tally.n_twice]
    if twice:
        n_values, n_all = sum(o.tally.n_twice for o in twice), sum(o.tally.n_checked for o in chosen)
        details.append(f"rounded more than once: {n_values} of {n_all} values in {len(twice)} tensors")
    lost = [o.subject.operation.tensor for o in chosen if o.tally.same and o.tally.moves and not o.tally.n_wrong]
    if lost:
        details.append(f"the update is smaller than the dtype's rounding in {len(lost)} tensors, such as {lost[0]}")
    return Check("tensors that change", _all_right(chosen), len(chosen), "; ".join(details))


def _all_right(outcomes: list[_Outcome]) -> bool:
    return all(o.verdict is None for o in outcomes)


def _looked_at(outcomes: list[_Outcome]) -> str:
    n_bytes = sum(o.subject.found.n_bytes for o in outcomes)
    share = sum(o.tally.n_bytes for o in outcomes) / max(n_bytes, 1)
    return f"a sample of {100 * share:.2g} %" if share < 0.995 else "every value"
