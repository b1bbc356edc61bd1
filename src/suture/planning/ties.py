"""Tied parameters: who shares a tensor after the merge, and who needs one of their own. Pure.

Members of a group that get the same update stay one tensor. Otherwise all get their own, and every tie flag of the
config turns false; then the groups that the adapter does not touch must be written out as well, since a loader no
longer fills in their missing members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from suture.values import (
    Arch,
    Checkpoint,
    Problem,
    Resolved,
    Settled,
    TensorInfo,
    Term,
    Tie,
    TiedPolicy,
    Untied,
    Update,
)

Same = Callable[[Update, Update], bool]
StoredEqual = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class _Group:
    tie: Tie
    stored: str  # the member whose tensor is on disk
    tensor: str  # that tensor
    updates: Mapping[str, Update]  # by member, as far as it has one
    apart: bool  # the members' updates differ


def settle(
    checkpoint: Checkpoint, arch: Arch, resolved: Resolved, policy: TiedPolicy, same: Same, stored_equal: StoredEqual
) -> Settled:
    """Decide each tied group.

    Args:
        same: whether two updates have the same values (reads factors of the adapter).
        stored_equal: whether two tensors of the base have the same bytes, for files that hold several members.
    """
    updates = dict(resolved.updates)
    groups = [g for tie in arch.ties if (g := _group(tie, checkpoint, arch, resolved, same, stored_equal))]
    for group in groups:
        updates |= group.updates
    apart = [g for g in groups if g.apart or policy == "untie"]
    problems = [p for g in apart for p in _objections(g, policy)]
    problems += _row_problems(arch, updates)
    if not apart or problems:
        return Settled(updates, (), (), tuple(problems), ())
    untied = tuple(_untied(g, checkpoint, arch, updates) for g in groups)
    notes = tuple(f"{' and '.join(u.members)} are untied: {u.why}" for u in untied)
    return Settled(updates, untied, arch.tie_flags, (), notes)


def _group(
    tie: Tie,
    checkpoint: Checkpoint,
    arch: Arch,
    resolved: Resolved,
    same: Same,
    stored_equal: StoredEqual,
) -> _Group | None:
    """A declared group as it is in truth; None when no member is on disk, or when the file already keeps them apart."""
    tensors = {part.param: part.tensor for part in arch.parts if part.param in tie.members and not part.index}
    stored = [m for m in tie.members if m in tensors and tensors[m] in checkpoint.tensors]
    if not stored or not all(stored_equal(tensors[stored[0]], tensors[m]) for m in stored[1:]):
        return None
    own = {m: resolved.updates[m] for m in tie.members if m in resolved.updates}
    if not own:
        return _Group(tie, stored[0], tensors[stored[0]], {}, apart=False)
    shared = _propagated(tie, own, arch, resolved.frozen)
    first = next(iter(shared.values()))
    agree = len(shared) == len(tie.members) and all(same(first, u) for u in list(shared.values())[1:])
    return _Group(tie, stored[0], tensors[stored[0]], shared, apart=not agree)


def _propagated(tie: Tie, own: Mapping[str, Update], arch: Arch, frozen: Mapping[str, TensorInfo]) -> dict[str, Update]:
    """Updates that reach other members by their nature, because training acted on the one tensor they share.

    The rows of a resized vocabulary are the base of every member; trained tokens of the input embedding act on all
    members that have none of their own; a bias that was trained in place is every member's.
    """
    shared = dict(own)
    resized = next((frozen[m] for m in tie.members if m in frozen and _is_resized(m, frozen[m], arch)), None)
    in_place = next(
        (u for u in own.values() if u.replacement and u.replacement.name.endswith(".base_layer.bias")), None
    )
    embedding = own.get(f"{arch.input_embedding}.weight")
    tokens = tuple(t for t in embedding.terms if t.method == "trainable_tokens") if embedding else ()
    for member in tie.members:
        update = own.get(member)
        if update is None and in_place is not None:
            update = replace(in_place, param=member)
        if resized is not None and (update is None or update.replacement is None):
            update = _based_on(resized, update, member)
        if tokens and embedding is not None and not any(t.method == "trainable_tokens" for t in _terms(update)):
            update = replace(update or replace(embedding, param=member, terms=()), terms=(*tokens, *_terms(update)))
        if update is not None:
            shared[member] = update
    return {m: shared[m] for m in tie.members if m in shared}


def _terms(update: Update | None) -> tuple[Term, ...]:
    """The terms of an update that may not exist."""
    return update.terms if update is not None else ()


def _is_resized(member: str, copy: TensorInfo, arch: Arch) -> bool:
    return copy.shape != arch.params[member].shape


def _based_on(resized: TensorInfo, update: Update | None, member: str) -> Update:
    if update is None:
        return Update(member, resized.shape, resized.shape[-1], resized, ())
    return replace(update, shape=resized.shape, replacement=resized)


def _objections(group: _Group, policy: TiedPolicy) -> list[Problem]:
    names = " and ".join(group.tie.members)
    touched = ", ".join(sorted(group.updates))
    if policy in ("refuse", "keep"):
        return [
            Problem(
                "T401",
                names,
                f"they are one tensor in the base, and the adapter changes them differently ({touched})",
                "one update for all of them (--tied keep), or none (--tied refuse)",
                "Use --tied auto: each gets its own tensor and the config says untied.",
            )
        ]
    if not group.tie.separable:
        return [
            Problem(
                "T402",
                names,
                f"the adapter changes them differently, and this model cannot keep them apart: {group.tie.why}",
                "an adapter that changes all of them in the same way, or none",
                "Train without embeddings and head, or with ensure_weight_tying; or serve the adapter unmerged.",
            )
        ]
    return []


def _row_problems(arch: Arch, updates: Mapping[str, Update]) -> list[Problem]:
    """A vocabulary grows at both ends, or at none."""
    ends = [f"{module}.weight" for module in (arch.input_embedding, arch.output_embedding) if module]
    if len(ends) < 2 or not all(e in arch.params for e in ends):
        return []
    before = {arch.params[e].shape[0] for e in ends}
    after = {e: updates[e].shape[0] if e in updates else arch.params[e].shape[0] for e in ends}
    if len(before) > 1 or len(set(after.values())) == 1:
        return []
    return [
        Problem(
            "T403",
            " and ".join(ends),
            f"they would have different numbers of rows ({', '.join(f'{e}: {n}' for e, n in after.items())})",
            "the rows of the resized vocabulary at both ends; new rows cannot be made up",
            "Train with both ends in modules_to_save, or both as LoRA targets, so that the file has the rows of both.",
        )
    ]


def _untied(group: _Group, checkpoint: Checkpoint, arch: Arch, updates: Mapping[str, Update]) -> Untied:
    on_disk = {part.param for part in arch.parts if part.tensor in checkpoint.tensors}
    added = tuple(m for m in group.tie.members if m not in on_disk)
    tensor = checkpoint.tensors[group.tensor]
    size = tensor.n_bytes // max(tensor.n_values, 1)
    n_values = tensor.n_values
    if group.stored in updates and tensor.shape:
        n_values = n_values // max(tensor.shape[0], 1) * updates[group.stored].shape[0]
    touched = sorted(group.updates)
    if len(touched) == 1:
        why = f"the adapter changes {touched[0]} alone"
    else:
        why = f"the adapter changes {' and '.join(touched)} differently" if touched else "the tie flag covers them too"
    return Untied(group.tie.members, group.stored, added, len(added) * n_values * size, why)
