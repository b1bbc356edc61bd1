"""Adapter keys × architecture × base headers → what each parameter gets. Pure: opens nothing.

Every tensor of the adapter ends up in `used`, or in a problem and in `leftover`. There is no third place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from suture import rewriting, targets
from suture.methods import METHODS
from suture.methods.base import BindError, Method, Target
from suture.rewriting import Rewriting
from suture.values import Adapter, Arch, Checkpoint, Json, Param, Problem, Resolved, TensorInfo, Update

PREFIX = rewriting.PREFIX
SUFFIXES = tuple(sorted({s for m in METHODS.values() for s in m.suffixes}, key=len, reverse=True))
WRAPPER = re.compile(r"\.(token_adapter\.base_layer|base_layer|original_module|modules_to_save)\.")
# More specific methods take their tensors first: DoRA before LoRA.
LOW_RANK = sorted((m for m in METHODS.values() if m.suffixes), key=lambda m: len(m.suffixes), reverse=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key of the adapter belongs.

    `role`: "factor" of a method, with its key suffix and the wrapper's level; "trained", a whole parameter that takes
    the base's place; "repeated", the same once more; "frozen", a copy of the matrix that training started from.
    """

    role: Literal["factor", "trained", "repeated", "frozen"]
    module: str
    param: str = ""
    suffix: str = ""
    level: int = 0  # how many `.base_layer` stand before the suffix: nested wrappers of fused experts


@dataclass(frozen=True, slots=True)
class _Scene:
    """What binding needs to know of the base and the config."""

    config: Json
    arch: Arch
    params: Mapping[str, Param]  # by module-space name, and by checkpoint name where that differs
    experts: Mapping[str, tuple[Param, ...]]  # target_parameters, inner first
    ends: frozenset[str]  # modules with a row for each token of the vocabulary


@dataclass(slots=True)
class _Bindings:
    """What has been bound so far."""

    updates: dict[str, Update]
    used: dict[str, str]
    problems: list[Problem]

    def bind(self, method: Method, tensors: Mapping[str, TensorInfo], target: Target) -> None:
        """Add what these tensors do to their parameter, after what is already bound to it."""
        assert method.bind is not None
        try:
            update = method.bind(target, tensors)
        except BindError as error:
            names = sorted(t.name for t in tensors.values())
            where = f"{next(iter(tensors.values())).file}: {names[0]}" + (f" and {names[1]}" if names[1:] else "")
            self.problems.append(Problem(error.code, where, error.found, error.expected, error.do))
            return
        before = self.updates.get(update.param)
        if before is not None:
            update = replace(before, terms=before.terms + update.terms)
        self.updates[update.param] = update
        self.used.update((t.name, target.module) for t in tensors.values())


def resolve(checkpoint: Checkpoint, adapter: Adapter, arch: Arch) -> Resolved:
    """Bind every tensor of the adapter to the parameter of the model that it changes."""
    scene = _scene(checkpoint, adapter, arch)
    places = {key: place for key in sorted(adapter.tensors) if (place := locate(key, scene))}
    bound = _Bindings({}, {}, _strangers_problem(set(adapter.tensors) - set(places), checkpoint, adapter, scene))
    frozen = {p.param: adapter.tensors[key] for key, p in places.items() if p.role == "frozen"}
    trained = {p.param: key for key, p in places.items() if p.role == "trained"}
    copies = {key: trained.setdefault(p.param, key) for key, p in places.items() if p.role == "repeated"}
    for param, key in sorted(trained.items()):
        bound.bind(METHODS["replaced"], {"W": adapter.tensors[key]}, _target(scene, scene.params[param]))
    for (module, level), tensors in sorted(_factors(places, adapter).items()):
        _bind_group(bound, scene, _weight(module, level, scene, bound.updates, frozen), module, tensors)
    for key, place in places.items():
        if place.role in ("frozen", "repeated"):
            bound.used[key] = place.module
    leftover = tuple(sorted(set(adapter.tensors) - set(bound.used)))
    copies = {key: other for key, other in copies.items() if key != other}
    updates = {name: _on_resized(update, scene.params[name], frozen) for name, update in sorted(bound.updates.items())}
    return Resolved(updates, bound.used, frozen, copies, leftover, tuple(bound.problems))


def remedy(checkpoint: Checkpoint, adapter: Adapter, arch: Arch, *, may_meet: bool = False) -> Rewriting | None:
    """The rewriting that makes all keys of an adapter fit; see `rewriting.find`.

    Names in memory come first, as PEFT knows no others; names on disk only where those do not fit.
    """
    scene = _scene(checkpoint, adapter, arch)
    for known in (replace(scene, params=dict(arch.params)), scene):
        found = rewriting.find(adapter.tensors, lambda key, s=known: locate(key, s) is not None, may_meet=may_meet)  # type: ignore[misc]
        if found is not None:
            return found
    return None


def _scene(checkpoint: Checkpoint, adapter: Adapter, arch: Arch) -> _Scene:
    params = dict(arch.params)
    for name, tensor in checkpoint.tensors.items():
        # Adapters of an older name generation, and those of single experts, use the names on disk.
        if name not in params:
            params[name] = Param(name, tensor.shape, "Linear" if len(tensor.shape) == 2 else "Other")
    return _Scene(adapter.config, arch, params, targets.target_parameters(adapter.config, arch), _ends(arch))


def _ends(arch: Arch) -> frozenset[str]:
    """The embedding, the head, and what is tied to either."""
    ends = {module for module in (arch.input_embedding, arch.output_embedding) if module is not None}
    tied = [{member.rpartition(".")[0] for member in tie.members} for tie in arch.ties]
    return frozenset(ends.union(*(modules for modules in tied if modules & ends)))


def locate(key: str, scene: _Scene) -> Place | None:
    """The place of a key; None when the base has no such place."""
    if not key.startswith(PREFIX):
        return None
    path = key.removeprefix(PREFIX)
    suffix = next((s for s in SUFFIXES if path.endswith(s)), None)
    if suffix is None:
        return _whole(path, scene)
    module, level = path.removesuffix(suffix), 0
    while module.endswith(".base_layer"):
        module, level = module.removesuffix(".base_layer"), level + 1
    known = module in scene.experts or f"{module}.weight" in scene.params
    return Place("factor", module, suffix=suffix, level=level) if known else None


def _whole(path: str, scene: _Scene) -> Place | None:
    """The place of a key that names a whole parameter, perhaps through PEFT's wrappers."""
    wrapped = WRAPPER.search(path)
    param = WRAPPER.sub(".", path)
    if param not in scene.params:
        return None
    module = param.rpartition(".")[0]
    wrapper = wrapped[1] if wrapped else ""
    if wrapper == "original_module" or (wrapper.endswith("base_layer") and param.endswith(".weight")):
        return Place("frozen", module, param)
    return Place("repeated" if wrapper == "modules_to_save" else "trained", module, param)


def _factors(places: Mapping[str, Place], adapter: Adapter) -> dict[tuple[str, int], dict[str, TensorInfo]]:
    """Tensors by module and level, then by key suffix."""
    groups: dict[tuple[str, int], dict[str, TensorInfo]] = {}
    for key, place in places.items():
        if place.role == "factor":
            groups.setdefault((place.module, place.level), {})[place.suffix] = adapter.tensors[key]
    return groups


def _target(scene: _Scene, weight: Param | None, module: str = "") -> Target:
    module = module or (weight.module if weight is not None else "")
    name = weight.name if weight is not None and weight.kind == "Experts" else module
    rank, _ = targets.rank_and_alpha(scene.config, name)
    return Target(
        module=module,
        weight=weight,
        bias=scene.params.get(f"{module}.bias"),
        rank=rank,
        scale=targets.scale(scene.config, name),
        token_ids=targets.token_ids(scene.config, module),
        fan_in_fan_out=bool(scene.config.get("fan_in_fan_out")),
        peft_version=targets.peft_version(scene.config),
        expert_major=scene.config.get("lora_B_layout") == "expert_major",
        is_end=module in scene.ends,
    )


def _bind_group(
    bound: _Bindings, scene: _Scene, weight: Param | None, module: str, tensors: Mapping[str, TensorInfo]
) -> None:
    """Give a module's factors to the methods that claim them; what no method takes is an orphan."""
    target = _target(scene, weight, module)
    left = dict(tensors)
    kind = weight.kind if weight is not None else "Unknown"
    for method in LOW_RANK:
        if set(method.suffixes) <= set(left) and (not method.kinds or kind in method.kinds):
            bound.bind(method, {short: left.pop(suffix) for suffix, short in method.suffixes.items()}, target)
    bound.problems += [_orphan(module, suffix, tensor, weight) for suffix, tensor in sorted(left.items())]


def _weight(
    module: str, level: int, scene: _Scene, updates: Mapping[str, Update], frozen: Mapping[str, TensorInfo]
) -> Param | None:
    """The parameter that a module's factors change, with the rows of a resized vocabulary.

    Wrapper levels of fused experts count from the parameter that was targeted last.
    """
    experts = scene.experts.get(module, ())
    if experts:
        param = experts[-1 - level] if level < len(experts) else None
        return replace(param, kind="Experts" if len(param.shape) == 3 else "Linear") if param else None
    param = scene.params.get(f"{module}.weight")
    if param is None or level:
        return None
    if param.name in updates:
        return replace(param, shape=updates[param.name].shape)
    return replace(param, shape=frozen[param.name].shape) if _is_resized(param, frozen) else param


def _is_resized(param: Param, frozen: Mapping[str, TensorInfo]) -> bool:
    copy = frozen.get(param.name)
    return copy is not None and copy.shape[1:] == param.shape[1:] and copy.shape[0] > param.shape[0]


def _on_resized(update: Update, param: Param, frozen: Mapping[str, TensorInfo]) -> Update:
    """A low-rank update of a resized matrix is added to the rows that the adapter saved."""
    if update.replacement is None and _is_resized(param, frozen):
        return replace(update, shape=frozen[param.name].shape, replacement=frozen[param.name])
    return update


def _orphan(module: str, suffix: str, tensor: TensorInfo, weight: Param | None) -> Problem:
    if weight is not None and weight.kind == "Other":
        found = f"{module} is neither a linear layer, a convolution nor an embedding"
        return Problem(
            "M303",
            f"{tensor.file}: {tensor.name}",
            found,
            "a module that LoRA can be added to",
            "Check the base model.",
        )
    partners = {s for m in LOW_RANK if suffix in m.suffixes for s in m.suffixes} - {suffix}
    missing = " or ".join(sorted(module + s for s in partners)) or "its partner"
    return Problem(
        "M302",
        f"{tensor.file}: {tensor.name}",
        f"the other factor is missing: {missing}",
        "both factors of every pair",
        "The file was not saved whole (ZeRO-3, FSDP or a filter on names). Save the adapter again.",
    )


def _strangers_problem(strangers: set[str], checkpoint: Checkpoint, adapter: Adapter, scene: _Scene) -> list[Problem]:
    """One problem for all keys that name nothing in the base, with the rewriting that would make all keys fit."""
    if not strangers:
        return []
    found = remedy(checkpoint, adapter, scene.arch)  # for the whole file or not at all
    names = sorted(strangers)
    shown = "\n    ".join(names[:4] + ([f"… and {len(names) - 4} more"] if len(names) > 4 else []))
    do = "Check that this is the base model the adapter was trained on."
    if found is not None:
        do = f"One rewriting makes all {len(adapter.tensors)} keys fit: {found.words}"
        do += f"\n    {found.before}\n  → {found.after}"
    return [
        Problem(
            "M301",
            adapter.file,
            f"{len(names)} of {len(adapter.tensors)} tensors name nothing in the base model:\n    {shown}",
            f"keys such as {_example(scene)}",
            do,
        )
    ]


def _example(scene: _Scene) -> str:
    module = next((p.module for p in scene.arch.params.values() if p.kind in ("Linear", "Conv1D", "Unknown")), "…")
    return f"{PREFIX}{module}.lora_A.weight"
