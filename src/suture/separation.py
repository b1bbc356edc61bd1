"""An adapter with its tied ends as full matrices, for pairs that come apart: all tools read that the same way. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from suture.errors import UsageError
from suture.rewriting import PREFIX
from suture.rules.base import Case
from suture.rules.m305_config_disagrees import shortest_name
from suture.targets import first_match
from suture.values import Json, Operation, Repair, Untied


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
    lora = {module for key, module in case.resolved.used.items() if ".lora_" in key} - modules
    config = _config(case.adapter.config, {m: shortest_name(m, case.arch) for m in modules}, lora)
    names = " and ".join(sorted(modules))
    words = (f"{names} as full matrices: {sum(_n_values(op) for op in made):,} values, each end with its own update",)
    return Separation(Repair("T401", words, dropped=dropped, config=config), made)


def _operations(case: Case, groups: Iterable[Untied], modules: set[str]) -> Iterable[Operation]:
    """One operation a parameter of these modules, under the key that it has in an adapter's file."""
    stored = {part.param: part.tensor for part in case.arch.parts if not part.index}
    added = {member for group in groups for member in group.added}
    by_tensor = {op.tensor: op for op in case.draft.operations}
    for name in sorted(p.name for p in case.arch.params.values() if p.module in modules):
        op = by_tensor[name if name in added else stored[name]]
        yield replace(op, tensor=PREFIX + name, file=case.adapter.file)


def _config(config: Json, names: Mapping[str, str], lora: set[str]) -> dict[str, Any]:
    """The fields that change: these modules are saved, and nothing else asks for them.

    Args:
        names: module → what modules_to_save calls it.
        lora: the modules that keep their low-rank factors.
    """
    changes: dict[str, Any] = {
        "modules_to_save": sorted({*(config.get("modules_to_save") or ()), *names.values()}),
        "ensure_weight_tying": False,
    }
    wanted = config.get("target_modules")
    if isinstance(wanted, str):
        if wanted.lower() != "all-linear":  # which leaves the head out, and embeddings
            changes["target_modules"] = sorted(lora)
    elif wanted:
        changes["target_modules"] = sorted(w for w in wanted if not any(f".{m}".endswith(f".{w}") for m in names))
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(field) or {}
        live = {k: v for k, v in patterns.items() if any(first_match({k: v}, module) is not None for module in lora)}
        changes |= {field: live} if live != patterns else {}
    if config.get("trainable_token_indices"):
        changes["trainable_token_indices"] = None
    return changes


def _n_values(op: Operation) -> int:
    return op.rows * op.cols
