"""Bindings + options → Plan: one operation per output tensor, every tensor of the base exactly once. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from suture.formats.dtypes import DTYPES, SIXTEEN
from suture.planning import cut, layout, requantize
from suture.planning.config_patch import generated_texts
from suture.values import (
    Arch,
    Checkpoint,
    Operation,
    Options,
    Param,
    Part,
    Plan,
    Problem,
    Settled,
    Sides,
    Source,
    TensorInfo,
    Update,
    Why,
)

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """What the inputs are, by content."""

    base_fingerprint: str
    adapter_sha256: str


@dataclass(frozen=True, slots=True)
class Draft:
    """Operations that have no place yet, in the base's order, and the updates that fit no tensor on disk."""

    operations: tuple[Operation, ...]
    problems: tuple[Problem, ...]


def build_plan(  # noqa: PLR0913 - what was read, decided, and chosen
    checkpoint: Checkpoint,
    draft: Draft,
    settled: Settled,
    identity: Identity,
    sides: Sides,
    options: Options,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Everything the merge will do. A draft with problems is a programming error: they were findings before.

    Args:
        notes: decisions that were made before.
    """
    assert not draft.problems
    operations, decoded = draft.operations, _decoded_notes(checkpoint)
    if options.output == "same":
        operations = requantize.stored_operations(checkpoint, operations)
        checkpoint, decoded = checkpoint.as_stored, requantize.notes(checkpoint, operations)
    laid = lay_out(checkpoint, operations)
    texts = generated_texts(checkpoint, laid, settled.tie_flags, options)
    return Plan(
        schema=SCHEMA,
        base_fingerprint=identity.base_fingerprint,
        adapter_sha256=identity.adapter_sha256,
        options=options,
        operations=laid.operations,
        files=laid.files,
        texts=texts,
        side_files=tuple(f for f in sides.files if f.name not in texts),
        untied=tuple(u.members for u in settled.untied),
        notes=(
            *notes,
            *settled.notes,
            *sides.notes,
            *decoded,
            *_cast_notes(laid.operations),
            *_rounding_notes(laid.operations, options),
        ),
    )


def lay_out(checkpoint: Checkpoint, operations: Iterable[Operation]) -> layout.Layout:
    """The operations in the base's files, or in new ones where the base's hold packed weights."""
    if checkpoint.quantization is None or not checkpoint.quantization.stored:
        return layout.lay_out(operations, {s.name: s.metadata for s in checkpoint.shards})
    operations = layout.reshard(operations)
    return layout.lay_out(operations, {op.file: {"format": "pt"} for op in operations})


def draft_operations(checkpoint: Checkpoint, arch: Arch, settled: Settled, options: Options) -> Draft:
    """One operation for each tensor of the base, and one for each tied member that gets a tensor of its own."""
    parts = parts_by_tensor(arch)
    added = {u.stored: u.added for u in settled.untied}
    seed = options.seed if options.rounding == "stochastic" else None
    operations: list[Operation] = []
    problems = [_unplaced(name) for name in _without_tensor(checkpoint, arch, settled)]
    for tensor in sorted(checkpoint.tensors.values(), key=lambda t: (t.file, t.begin)):
        here = parts.get(tensor.name, ())
        if misfits := [p for part in here if part.param in settled.updates for p in _misfit(tensor, part, arch)]:
            problems += misfits
            continue
        try:
            dtype = _dtype(tensor, checkpoint, options)
            operations.append(
                _operation(tensor, tensor.name, _changes(tensor, here, arch, settled.updates), dtype, seed)
            )
            for member in (m for part in here for m in added.get(part.param, ())):
                moved = [replace(part, param=member) for part in here]
                changes = _changes(tensor, moved, arch, settled.updates)
                operations.append(replace(_operation(tensor, member, changes, dtype, seed), why="untie"))
        except cut.NotExpressible as error:
            problems.append(_not_expressible(tensor.name, str(error)))
    problems += _stays_small(operations, checkpoint)
    return Draft(tuple(operations), tuple(problems))


def parts_by_tensor(arch: Arch) -> dict[str, tuple[Part, ...]]:
    """The arch's parts by the checkpoint tensor they describe."""
    found: dict[str, tuple[Part, ...]] = {}
    for part in arch.parts:
        found[part.tensor] = (*found.get(part.tensor, ()), part)
    return found


def _changes(
    tensor: TensorInfo, parts: Iterable[Part], arch: Arch, updates: Mapping[str, Update]
) -> list[tuple[Update, cut.Carried]]:
    """The updates that reach a tensor: those of the parameters it is part of, and one made for its name on disk."""
    reached = [(part, arch.params[part.param]) for part in parts if part.param in updates]
    if tensor.name in updates and tensor.name not in arch.params:
        reached.append((Part(tensor.name, tensor.name), Param(tensor.name, tensor.shape, "Linear")))
    return [(updates[part.param], cut.carry(updates[part.param], part, param)) for part, param in reached]


def _stays_small(operations: Iterable[Operation], checkpoint: Checkpoint) -> Iterable[Problem]:
    """Biases of BART's kind, a column for each token, that no adapter holds: with more tokens they would not load."""
    operations = tuple(operations)
    grown = {
        checkpoint.tensors[op.tensor].shape[0]: op.shape[0]
        for op in operations
        if op.tensor in checkpoint.tensors
        and len(op.shape) == 2
        and op.shape[0] > checkpoint.tensors[op.tensor].shape[0]
    }
    for op in operations:
        if op.tensor.endswith("final_logits_bias") and op.shape[-1] in grown:
            yield Problem(
                "T403",
                f"{op.file}: {op.tensor}",
                f"it has {op.shape[-1]} columns, the vocabulary grows to {grown[op.shape[-1]]}, PEFT saves none",
                "a column for every token",
                "Resize the base's vocabulary with Transformers, save it, and merge onto that.",
            )


def _misfit(tensor: TensorInfo, part: Part, arch: Arch) -> Iterable[Problem]:
    """A tensor of another shape than the parameter that it is: the same values would be read as another matrix."""
    shape = arch.params[part.param].shape
    expected = (*shape[:-2], *shape[:-3:-1]) if part.transpose else shape
    if part.index or part.rows is not None or tensor.shape == expected or not DTYPES[tensor.dtype].computable:
        return
    yield Problem(
        "M303",
        f"{tensor.file}: {tensor.name}",
        f"the base's tensor has the shape {list(tensor.shape)}",
        f"{list(expected)}, which follows from its config.json",
        "The base's config is not the one of its weights, or its weights were written by another tool. Save it again.",
    )


def _operation(
    tensor: TensorInfo, name: str, changes: list[tuple[Update, cut.Carried]], dtype: str, seed: int | None
) -> Operation:
    terms = tuple(term for _, carried in changes for term in carried.terms)
    source, shape = Source("base", tensor), tensor.shape
    for update, carried in changes:
        if update.replacement is not None:
            grown = carried.first_row == 0 and update.shape[1:] == tensor.shape[1:]
            source = Source("adapter", update.replacement, carried.first_row)
            shape = update.shape if grown else tensor.shape
    changed = bool(terms) or (source.origin == "adapter" and source.tensor.dtype != dtype)
    return Operation(
        tensor=name,
        why=_why(source, changed=bool(terms), cast=dtype != source.tensor.dtype),
        source=source,
        terms=terms,
        dtype=dtype,
        shape=shape,
        cols=changes[0][1].cols if terms else (shape[-1] if len(shape) > 1 else 1),
        block_rows=1,
        file=tensor.file,
        begin=0,
        end=0,
        seed=seed if changed and dtype in SIXTEEN else None,
    )


def _dtype(tensor: TensorInfo, checkpoint: Checkpoint, options: Options) -> str:
    """The type that a tensor is written in: its own, or as asked; of weights that come out in float32, the model's."""
    if not DTYPES[tensor.dtype].is_float:
        return tensor.dtype
    own = tensor.dtype
    if checkpoint.quantization is not None and not tensor.is_stored and own == "F32":
        own = checkpoint.quantization.dtype
    return options.dtype or own


def _why(source: Source, *, changed: bool, cast: bool) -> Why:
    if changed:
        return "merge"
    if source.origin == "adapter":
        return "replace"
    if not source.tensor.is_stored:
        return "dequantize"
    return "cast" if cast else "copy"


def _without_tensor(checkpoint: Checkpoint, arch: Arch, settled: Settled) -> list[str]:
    """Updated parameters that no tensor on disk holds, tied members apart."""
    stored = {p.param for p in arch.parts if p.tensor in checkpoint.tensors} | set(checkpoint.tensors)
    held = {m for tie in arch.ties if stored & set(tie.members) for m in tie.members}
    return sorted(set(settled.updates) - stored - held)


def _unplaced(name: str) -> Problem:
    return Problem(
        "M308",
        name,
        "no tensor of the base files holds this parameter in a form that the update can be carried onto",
        "a checkpoint that stores the parameter, whole or in rows",
        "Save the base with a Transformers version that stores this parameter in one piece, and merge onto that.",
    )


def _not_expressible(where: str, why: str) -> Problem:
    return Problem(
        "M308",
        where,
        f"the update cannot be carried onto the tensor on disk: {why}",
        "a tensor made of whole rows of the parameter that the adapter changes",
        "Save the base with a Transformers version that stores this parameter in one piece, and merge onto that.",
    )


def _decoded_notes(checkpoint: Checkpoint) -> list[str]:
    """What was packed, and what is written in its place."""
    if checkpoint.quantization is None:
        return []
    what = f"{len(checkpoint.packed)} weights are dequantised ({checkpoint.quantization.words}), as their library does"
    others = len(checkpoint.tensors) - len(checkpoint.packed)
    return [f"{what}; the other {others} never were quantised" if others else what]


def _cast_notes(operations: Iterable[Operation]) -> list[str]:
    """Full tensors of the adapter that take the base's dtype."""
    casts: dict[tuple[str, str], int] = {}
    for op in operations:
        if op.source.origin == "adapter" and op.source.tensor.dtype != op.dtype:
            pair = (op.source.tensor.dtype, op.dtype)
            casts[pair] = casts.get(pair, 0) + 1
    return [f"{n} full tensors of the adapter are rounded from {a} to the base's {b}" for (a, b), n in casts.items()]


def _rounding_notes(operations: Iterable[Operation], options: Options) -> list[str]:
    """What stochastic rounding is done to, where it was asked for."""
    if options.rounding == "nearest":
        return []
    chosen = [op for op in operations if op.seed is not None]
    if not chosen:
        return ["stochastic rounding was asked for, but no tensor that changes is written in 16 bits"]
    dtypes = " and ".join(sorted({op.dtype for op in chosen}))
    return [f"what changes in {len(chosen)} tensors is rounded to {dtypes} at random, with seed {options.seed}"]
