"""An adapter with its tied ends as full matrices, for pairs that come apart: all tools read that the same way. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from suture.errors import UsageError
from suture.rewriting import PREFIX
from suture.rules import diagnose
from suture.rules.base import Case
from suture.rules.m305_config_disagrees import shortest_name
from suture.targets import matching
from suture.values import Operation, Repair, Untied


@dataclass(frozen=True, slots=True)
class Separation:
    """What changes in the adapter, and what computes the matrices: W + ΔW of each end, rounded once."""

    repair: Repair
    operations: tuple[Operation, ...]


def separated(case: Case) -> Separation:
    """The ends of the vocabulary in `modules_to_save`, in place of their low-rank factors and trained tokens.

    Raises:
        UsageError: nothing is tied apart; or PEFT could not hold what is left, since it has no low-rank module.
    """
    if errors := [f for f in diagnose(case) if f.severity == "error" and f.code[0] in "MT"]:
        raise UsageError(
            f"the adapter has other defects: {errors[0].code} {errors[0].name}: {errors[0].found}",
            where="--separate",
            expected="an adapter without errors",
            do="See suture check; repair those first.",
        )
    groups = [u for u in case.settled.untied if set(u.members) & case.settled.updates.keys()]
    if not groups:
        raise UsageError(
            "no tied parameters come apart with this adapter",
            where="--separate",
            expected="an adapter that changes the ends of a tied pair in different ways",
            do="Leave the option out.",
        )
    modules = {member.rpartition(".")[0] for group in groups for member in group.members}
    dropped = tuple(sorted(key for key, module in case.resolved.used.items() if module in modules))
    if not any(".lora_" in key for key in case.adapter.tensors.keys() - set(dropped)):
        raise UsageError(
            f"the adapter trains {' and '.join(sorted(modules))} alone",
            where="--separate",
            expected="a low-rank module besides: PEFT refuses an adapter without any",
            do="Merge it with suture merge, which separates the two.",
        )
    made = tuple(_operations(case, groups, modules))
    config = _config(case, {m: shortest_name(m, case.arch) for m in modules})
    names = " and ".join(sorted(modules))
    words = (f"{names} as full matrices: {sum(_n_values(op) for op in made):,} values, each end with its own update",)
    return Separation(Repair("T401", words, dropped=dropped, config=config), made)


def _operations(case: Case, groups: Iterable[Untied], modules: set[str]) -> Iterable[Operation]:
    """One operation a parameter of these modules, under the key that it has in an adapter's file."""
    stored = {part.param: part.tensor for part in case.arch.parts if not part.index}
    added = {member for group in groups for member in group.added}
    by_tensor = {op.tensor: op for op in case.draft.operations}
    for name in sorted(p.name for p in case.arch.params.values() if p.module in modules):
        op = by_tensor.get(name if name in added else stored.get(name, name))
        if op is None:
            raise UsageError(
                f"{name} is stored under another name, which is tied to it",
                where="--separate",
                expected="ends of the vocabulary whose parameters are stored as such",
                do="Merge it with suture merge, which separates the two.",
            )
        yield replace(op, tensor=PREFIX + name, file=case.adapter.file)


def _config(case: Case, names: Mapping[str, str]) -> dict[str, Any]:
    """The fields that change: these modules are saved, and nothing else asks for them.

    Args:
        names: module → what modules_to_save calls it.
    """
    config = case.adapter.config
    changes: dict[str, Any] = {
        "modules_to_save": sorted({*(config.get("modules_to_save") or ()), *names.values()}),
        "ensure_weight_tying": False,
    }
    wanted = config.get("target_modules")
    if isinstance(wanted, str):
        if wanted.lower() != "all-linear":  # which leaves the head out, and embeddings
            lora = {module for key, module in case.resolved.used.items() if ".lora_" in key}
            changes["target_modules"] = sorted(lora - names.keys())
    elif wanted:
        changes["target_modules"] = sorted(w for w in wanted if not _is_one_of(w, names))
    others = [n for p in case.arch.params.values() if p.module not in names for n in (p.module, p.name)]
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(field) or {}
        gone = {key for module in names for key in matching(patterns, module)}
        gone -= {key for name in others for key in matching(patterns, name)}
        changes |= {field: {k: v for k, v in patterns.items() if k not in gone}} if gone else {}
    return changes | _tokens(case, names)


def _tokens(case: Case, names: Mapping[str, str]) -> dict[str, Any]:
    """trainable_token_indices without the ends; a plain list means the input embedding."""
    indices = case.adapter.config.get("trainable_token_indices")
    if isinstance(indices, Mapping):
        return {"trainable_token_indices": {k: v for k, v in indices.items() if not _is_one_of(k, names)} or None}
    return {"trainable_token_indices": None} if indices and case.arch.input_embedding in names else {}


def _is_one_of(name: str, modules: Iterable[str]) -> bool:
    return any(f".{module}".endswith(f".{name}") for module in modules)


def _n_values(op: Operation) -> int:
    return op.rows * op.cols
