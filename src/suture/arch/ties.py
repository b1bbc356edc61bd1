"""Names that are one tensor, and whether they can become several: the class is built again with every flag off."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from suture.arch import meta
from suture.arch.reads import reads_of
from suture.errors import FormatError
from suture.values import Json, Tie

FLAG = "tie_word_embeddings"
Path = tuple[str, ...]

# How many flags of other names are tried, one build each: no class has more than a few.
_MAX_TRIALS = 8


@dataclass(frozen=True, slots=True)
class _Untied:
    """The class built again with the flags off."""

    built: meta.Built
    flags: tuple[Path, ...]
    group_of: Mapping[str, int]  # names that are still one tensor, by the number of their group


def find_ties(model_class: Any, built: meta.Built, config: Json) -> tuple[tuple[Tie, ...], tuple[Path, ...]]:
    """The tied groups of a model, and the paths in config.json that must turn false to untie them."""
    groups = meta.tied_groups(built.model)
    if not groups:
        return (), ()
    try:
        off = _untie(model_class, built, config)
    except FormatError as refusal:
        return tuple(Tie(members, separable=False, why=refusal.found) for members in groups), ((FLAG,),)
    readers = reads_of(built.model, meta.differences(built.config, off.built.config))
    before, after = meta.params(built.model), meta.params(off.built.model)
    ties: list[Tie] = []
    for members in groups:
        why = _why_kept(members, off) or _why_other(before, after) or readers or _why_unloadable(members, off)
        ties.append(Tie(members, separable=not why, why=why))
    return tuple(ties), off.flags


def _untie(model_class: Any, built: meta.Built, config: Json) -> _Untied:
    """Build with the usual flag off wherever it stands or works; then, if need be, with other flags named tie_…"""
    nested = _attributes_true(built.config)
    spelled_out = [p for p in nested if isinstance(_at(config, p[:-1]), Mapping)]
    flags = list(dict.fromkeys([(FLAG,), *_standing(config, exact=True), *spelled_out]))
    off = _build_off(model_class, config, flags)
    if off.group_of:
        other = [*nested, *_standing(config, exact=False), *_other_flags(built.config)]
        for path in [p for p in dict.fromkeys(other) if p not in flags][:_MAX_TRIALS]:
            trial = _build_off(model_class, config, [*flags, path])
            if len(trial.group_of) < len(off.group_of):
                off, flags = trial, [*flags, path]
    return off


def _build_off(model_class: Any, config: Json, flags: Sequence[Path]) -> _Untied:
    plain = copy.deepcopy(dict(config))
    for path in flags:
        _set_false(plain, path)
    built = meta.build(model_class, plain)
    group_of = {n: i for i, members in enumerate(meta.tied_groups(built.model)) for n in members}
    return _Untied(built, tuple(flags), group_of)


def _set_false(plain: dict[str, Any], path: Path) -> None:
    *parents, key = path
    for parent in parents:
        plain[parent] = dict(plain.get(parent) or {})
        plain = plain[parent]
    plain[key] = False


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _standing(value: Any, *, exact: bool, path: Path = ()) -> list[Path]:
    """Paths in config.json of the flag itself, or of any that is named tie_…, where it is on."""
    found: list[Path] = []
    for key in sorted(value) if isinstance(value, Mapping) else ():
        if value[key] is True and (key == FLAG if exact else key.startswith("tie_")):
            found.append((*path, key))
        found += _standing(value[key], exact=exact, path=(*path, key))
    return found


def _attributes_true(config: Any, path: Path = ()) -> list[Path]:
    """Paths of the flag in nested configs whose class turns it on, whether or not config.json spells it out."""
    found: list[Path] = []
    for key, nested in meta.nested_configs(config).items():
        if getattr(nested, FLAG, False):
            found.append((*path, key, FLAG))
        found += _attributes_true(nested, (*path, key))
    return found


def _other_flags(config: Any, path: Path = ()) -> list[Path]:
    """Paths of attributes of the config objects named tie_… that are true."""
    found = [(*path, k) for k, v in sorted(vars(config).items()) if k.startswith("tie_") and k != FLAG and v is True]
    for key, nested in meta.nested_configs(config).items():
        found += _other_flags(nested, (*path, key))
    return found


def _why_kept(members: Sequence[str], off: _Untied) -> str:
    together = [off.group_of[n] for n in members if n in off.group_of]
    if len(together) == len(set(together)):
        return ""
    if forced := _still_on(off.built.config):
        return f"{forced} sets {FLAG} to true whatever config.json says"
    return f"{type(off.built.model).__name__} keeps them as one tensor with every tie flag off"


def _still_on(config: Any) -> str:
    """The class of a config object that turns the flag on again, or ""."""
    if getattr(config, FLAG, False):
        return type(config).__name__
    return next((found for c in meta.nested_configs(config).values() if (found := _still_on(c))), "")


def _why_other(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    other = sorted(before.keys() ^ after.keys())
    return f"with the tie flags off the class has other parameters ({other[0]})" if other else ""


def _why_unloadable(members: Sequence[str], off: _Untied) -> str:
    """An untied model is written under its own parameter names: the loader must take each of them for what it is."""
    found, _, _ = meta.routes(off.built.model, members)
    reached = {r.targets[0] for r in found if not r.steps and tuple(r.sources) == r.targets}
    lost = [n for n in members if n not in reached]
    return f"the loader does not read {lost[0]} from a tensor of that name" if lost else ""
