"""Tensors of a folder matched with those of a plan: missing ones, extra ones, and the forms that are the same model.

A merge saved by Transformers may name all tensors with one more or one less leading path, may leave out a member of a
tied pair or a table that it computes, and may store one tensor under two tied names. Each is accepted where it is the
same model, and told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from suture.values import Check, Json, Operation, Plan, TensorInfo, TensorVerdict
from suture.verification import judge, reading
from suture.verification.configs import flags
from suture.verification.expect import Inputs
from suture.verification.judge import Subject

_MAY_BE_TIED = re.compile(
    r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings|embeddings|shared|lm_head|embed_out|proj_out|output|decoder|predictions)"
    r"\.(weight|bias)$"
)
_BUFFER = re.compile(r"(rotary_emb\.inv_freq|masked_bias|position_ids)$")
_MASKS = (".attn.bias", ".attention.bias")
PREFIX_TRIES = 20  # missing names that a leading path is looked for with
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Matched:
    """`found` by the plan's names, the check, and the tensors that are missing."""

    found: Mapping[str, TensorInfo]
    check: Check
    wrong: tuple[TensorVerdict, ...]


def match(plan: Plan, inputs: Inputs, folder: Path, tensors: Mapping[str, TensorInfo], *, strict: bool) -> Matched:
    """Find each tensor of the plan. With `strict` the names must be the plan's."""
    planned = {op.tensor: op for op in plan.operations}
    told: list[str] = []
    found = dict(tensors)
    if not strict:
        found = _with_planned_prefix(planned, tensors, told)
    missing = sorted(planned.keys() - found.keys())
    wrong = [] if strict else _not_tied(plan, inputs, folder, found, missing, told)
    if strict:
        wrong = [_missing(name, "") for name in missing]
    extra = sorted(found.keys() - planned.keys())
    strangers = extra if strict else [name for name in extra if not _is_duplicate(folder, found, name, told)]
    told = [*told[:SHOWN], *([f"… and {len(told) - SHOWN} more such"] if len(told) > SHOWN else [])]
    if wrong:
        told.append(f"{len(wrong)} missing: {_some([w.tensor for w in wrong])}")
    if strangers:
        told.append(f"{len(strangers)} that neither base nor adapter gives: {_some(strangers)}")
    check = Check("tensor names", not wrong and not strangers, len(tensors), "; ".join(told))
    return Matched({name: t for name, t in found.items() if name in planned}, check, tuple(wrong))


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")


def _missing(name: str, detail: str) -> TensorVerdict:
    return TensorVerdict(name, "missing", 0, 0, 0.0, None, detail or "not in the folder")


def _with_planned_prefix(
    planned: Mapping[str, Operation], tensors: Mapping[str, TensorInfo], told: list[str]
) -> dict[str, TensorInfo]:
    """The folder's tensors by the plan's names, if one leading path more or less explains the difference."""
    missing, extra = sorted(planned.keys() - tensors.keys()), tensors.keys() - planned.keys()
    added = Counter(n[: -len(m)] for m in missing[:PREFIX_TRIES] for n in extra if n.endswith(f".{m}"))
    dropped = Counter(m[: -len(n)] for m in missing[:PREFIX_TRIES] for n in extra if m.endswith(f".{n}"))
    counted = sorted((added + dropped).items(), key=lambda item: (-item[1], item[0]))
    for prefix, _ in counted[:1]:
        new = {(n.removeprefix(prefix) if prefix in added else prefix + n) if n in extra else n: n for n in tensors}
        if len(new) == len(tensors) and len(planned.keys() - new.keys()) < len(missing):
            told.append(f"names {'with' if prefix in added else 'without'} the leading {prefix}")
            return {name: tensors[old] for name, old in new.items()}
    return dict(tensors)


def _not_tied(
    plan: Plan, inputs: Inputs, folder: Path, found: dict[str, TensorInfo], missing: list[str], told: list[str]
) -> list[TensorVerdict]:
    """Missing tensors that a loader does not fill in rightly from a tied partner; the rest is told."""
    config = reading.read_json(folder / "config.json") or {}
    planned = {op.tensor: op for op in plan.operations}
    ends = [op for op in plan.operations if op.tensor in found and _MAY_BE_TIED.search(op.tensor)]
    wrong: list[TensorVerdict] = []
    for name in missing:
        operation = planned[name]
        partners = [op for op in ends if op.shape == operation.shape] if _MAY_BE_TIED.search(name) else []
        good = [p for p in partners if _holds(Subject(operation, inputs, folder, found[p.tensor]))]
        if _is_buffer(operation):
            told.append(f"{name} is left out: Transformers computes it")
        elif _may_tie(config) and good:
            told.append(f"{name} is left out: a loader ties it to {good[0].tensor}, which is equal")
        elif _may_tie(config) and partners:
            wrong.append(_missing(name, f"a loader ties it to {partners[0].tensor}, which holds something else"))
        else:
            wrong.append(_missing(name, ""))
    return wrong


def _is_buffer(operation: Operation) -> bool:
    """True for tables that old checkpoints hold and Transformers computes: masks, positions, rotary frequencies."""
    name = operation.tensor
    return operation.is_copy and (
        _BUFFER.search(name) is not None or (name.endswith(_MASKS) and len(operation.shape) == 4)
    )


def _may_tie(config: Json) -> bool:
    """False only when every flag of the config says that nothing is tied."""
    found = flags(config).values()
    return any(found) or not found


def _holds(subject: Subject) -> bool:
    if judge.unjudgeable(subject, strict=False) is not None or subject.operation.part_of:
        return False
    if judge.is_byte_copy(subject):
        return judge.compare_bytes(subject, full=False).n_wrong == 0
    return judge.compare_values(subject, full=False, strict=False).n_wrong == 0


def _is_duplicate(folder: Path, found: Mapping[str, TensorInfo], name: str, told: list[str]) -> bool:
    """True when an extra tensor has the bytes of another one, as a tied pair that is stored twice."""
    tensor = found[name]
    for other in sorted(found.values(), key=lambda t: t.name):
        alike = (other.dtype, other.shape) == (tensor.dtype, tensor.shape) and other != tensor
        if alike and reading.same_bytes(folder, tensor, other):
            told.append(f"{name} is a second copy of {other.name}")
            return True
    return False
