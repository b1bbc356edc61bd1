"""# M301 key-unmatched

## What it finds
Tensors of the adapter whose names lead to no module of the base model.

## Why it matters
Most loaders skip what they cannot place. The merge "succeeds", the new weights equal the base's, and the training is
lost without an error. It takes one missing level in the names (`model.`), a wrapper's prefix (`_orig_mod.`,
`module.`), an adapter name that stayed in them (`lora_A.default`), or a model class that was rearranged.

## How it is detected
Every name must be `base_model.model.`, then the path of a module as Transformers names it in memory (or as it is named
in the base's files), then a known ending such as `lora_A.weight`. One name that does not fit stops the merge.

## How to fix
If one rewriting makes all names fit, the finding says which, with a name before and after, and `suture fix` writes the
adapter with the new names. If none does, this is probably not the base that the adapter was trained on.

## References
- huggingface/peft#2566, huggingface/peft#2586: merged weights equal to the base's
- huggingface/peft#2118: missing keys on loading
- huggingface/peft#2957: names with wrappers
- unslothai/unsloth-zoo#1234: none of 326 weights changed
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from suture import resolve
from suture.rewriting import PREFIX
from suture.rules.base import Case, Rule, from_problems, listed
from suture.targets import first_match
from suture.values import Arch, Finding, Json, Repair

DOUBLED = PREFIX + PREFIX


def check(case: Case) -> Iterable[Finding]:
    """What resolving says of the names; and no tensor may be left over without a reason."""
    yield from from_problems(case, RULE.code, RULE.name)
    left = case.resolved.leftover
    if left and not case.resolved.problems:
        yield RULE.finding(
            case.adapter.file,
            f"{len(left)} tensors have no place in the merged model: {listed(left)}",
            "each tensor of the adapter used once",
            "Save the adapter again with PEFT.",
        )


def fix(case: Case) -> Repair | None:
    """Other names, by one rule for the whole file, in the config too. Tensors whose names meet must be equal."""
    if not any(p.code == "M301" for p in case.resolved.problems):
        return None
    found = resolve.remedy(case.checkpoint, case.adapter, case.arch)
    found = found or resolve.remedy(case.checkpoint, case.adapter, case.arch, may_meet=True)
    if found is None:
        return None
    modules = {_module(old): _module(new) for old, new in found.names.items() if _module(old) != _module(new)}
    changes, unclear = _renamed_config(case.adapter.config, _with_params(modules, case.arch))
    words = (found.words, *(f"the same names in {field} of the config" for field in sorted(changes)))
    if any(DOUBLED in key for key in found.names):
        unclear = "that the first adapter is not missed: it was under this one in training, and it is not in this file"
    known = {param.module for param in case.arch.params.values()}
    if modules and not set(modules.values()) <= known:
        unclear = "that names on the disk will do: a merge reads them, and PEFT may look for the names in memory"
    return Repair(RULE.code, words, renamed=found.names, config=changes, assumes=unclear)


def _module(key: str) -> str:
    """The module's path in a key."""
    path = re.split(r"\.(?:lora_|token_adapter\.|base_layer\.|modules_to_save\.|original_module\.)", key)[0]
    return path.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".bias")


def _with_params(modules: Mapping[str, str], arch: Arch) -> dict[str, str]:
    """The renamed modules, and the fused parameters in them, which patterns and target_parameters name as well."""
    old_of = {new: old for old, new in modules.items()}
    params = [param for param in arch.params.values() if param.module in old_of and not param.name.endswith(".weight")]
    leaves = {f"{old_of[param.module]}.{param.name.rpartition('.')[2]}": param.name for param in params}
    return {**modules, **leaves}


def _renamed_config(config: Json, paths: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Fields of the config that name modules by their paths, under the new names; and what is unclear about it.

    Patterns of ranks and alphas decide the scale. Those that match old names and no new ones belong to the old ones.
    """
    changes: dict[str, Any] = {}
    unclear = ""
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(field) or {}
        pairs = {new: (first_match(patterns, old), first_match(patterns, new)) for old, new in paths.items()}
        other = {new: before for new, (before, after) in pairs.items() if before != after and before is not None}
        if other and all(pairs[new][1] is None for new in other):
            changes[field] = {**{re.escape(new): value for new, value in other.items()}, **patterns}
        elif other:
            unclear = f"that {field} means the new names: it matches old and new ones, with other values"
    for field in ("target_modules", "exclude_modules", "modules_to_save", "target_parameters"):
        names = config.get(field)
        if isinstance(names, list):
            renamed = [new for name in names for new in _renamed(name, paths)]
            changes |= {field: list(dict.fromkeys(renamed))} if renamed != names else {}
    tokens = config.get("trainable_token_indices")
    if isinstance(tokens, Mapping):
        entries = {new: ids for name, ids in tokens.items() for new in _renamed(name, paths)}
        changes |= {"trainable_token_indices": entries} if entries.keys() != tokens.keys() else {}
    return changes, unclear


def _renamed(name: str, paths: Mapping[str, str]) -> list[str]:
    """What an entry of a list becomes: the new paths of what it named, if it names nothing any more."""
    if any(f".{new}".endswith(f".{name}") for new in paths.values()):
        return [name]
    return sorted({new for old, new in paths.items() if f".{old}".endswith(f".{name}")}) or [name]


RULE = Rule("M301", "key-unmatched", "error", check, fix=fix, modes=("F04", "F08", "F22", "F37", "F44"))
