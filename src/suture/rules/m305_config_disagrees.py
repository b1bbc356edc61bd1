"""# M305 config-disagrees

## What it finds
Differences between what `adapter_config.json` says the adapter holds and what the file holds: modules that the config
names and the file lacks, tensors in the file that the config does not name, and lists of trained tokens that do not
have the length of their tensor.

## Why it matters
PEFT builds the adapter from the config and then loads what fits. Tensors that the config does not name are dropped
without a word; modules that the file lacks stay untrained. Whoever tested the adapter tested something else than what
is in the file.

## How it is detected
The config is matched against the modules of the architecture, by PEFT's own rules (`target_modules`,
`target_parameters`, `modules_to_save`, `trainable_token_indices`, patterns, excluded modules and layers), and the names
that follow are compared with the header, both ways. What PEFT adds by itself passes: copies of the base's matrices,
embeddings of a resized vocabulary, the other end of a tied pair.

## How to fix
Use the config and the file that were saved together. If the file is right, `suture fix` writes an adapter whose config
says what the file holds. Or pass `--ignore M305`: the merge uses every tensor of the file.

## References
- huggingface/peft#2118, huggingface/peft#2084: adapters that load in part
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from suture import targets
from suture.rewriting import PREFIX
from suture.rules.base import Case, Rule, from_problems, listed
from suture.values import Arch, Finding, Repair

TOKENS = ".token_adapter.trainable_tokens_delta"
COPIES = (".original_module.", ".modules_to_save.")
HEADS = frozenset({"classifier", "score"})
WRAPPERS = (".base_layer", ".token_adapter")


def check(case: Case) -> Iterable[Finding]:
    """Both differences, unless names are unmatched: then nothing can be compared."""
    yield from from_problems(case, RULE.code, RULE.name)
    config, strangers = case.adapter.config, any(p.code == "M301" for p in case.resolved.problems)
    if config.get("peft_type") != "LORA" or strangers or not case.adapter.tensors:
        return
    whole = {part.tensor: part.param for part in case.arch.parts if not part.index and part.rows is None}
    present = {_today(key, module, case.arch, whole): key for key, module in case.resolved.used.items()}
    unbound = set(case.resolved.leftover)  # they lead to a module, and another rule says what is wrong with them
    claimed = targets.expected(config, case.arch).tensors.keys() | _claimed_on_disk(case, whole)
    twins = _twins(case.arch)
    missing = {key for key in claimed - unbound if key not in present and not _is_shared(key, present, case, twins)}
    extra = {present[key] for key in present if key not in claimed and not _is_allowed(key, claimed, case, twins)}
    yield from _missing(case, missing, len(claimed))
    yield from _nameless(case)
    yield from _extra(case, extra)


def _missing(case: Case, keys: set[str], n_claimed: int) -> Iterable[Finding]:
    if keys:
        yield RULE.finding(
            case.adapter.file,
            f"{len(keys)} of the {n_claimed} tensors that the config asks for are not in the file: {listed(keys)}",
            "all tensors that target_modules, modules_to_save and the other fields name",
            "Use the file and the config that were saved together, or save the adapter again.",
        )


def _nameless(case: Case) -> Iterable[Finding]:
    """Names of modules_to_save and target_parameters that no module and no parameter of the base ends with."""
    params = case.arch.params.values()
    modules = {".".join(parts[:n]) for p in params for parts in [p.module.split(".")] for n in range(1, len(parts) + 1)}
    known = {"modules_to_save": modules, "target_parameters": {p.name for p in params if len(p.shape) in (2, 3)}}
    for field, names in known.items():
        wanted = [str(name) for name in case.adapter.config.get(field) or ()]
        absent = [name for name in wanted if names and not any(known.endswith(name) for known in names)]
        if set(absent) <= HEADS and set(wanted) & HEADS - set(absent):
            continue  # PEFT names all heads that a classifier may have
        if absent:
            what = "module" if field == "modules_to_save" else "matrix"
            yield RULE.finding(
                f"adapter_config.json: {field}",
                f"it names {listed(absent)}, and the base has no {what} of that name",
                "names that end the path of a module of the base",
                "Give the base with the head that training had; or the config was edited: bring back the saved one.",
            )


def _extra(case: Case, keys: set[str]) -> Iterable[Finding]:
    if keys:
        yield RULE.finding(
            case.adapter.file,
            f"{len(keys)} of {len(case.adapter.tensors)} tensors are not asked for by the config: {listed(keys)}",
            "only tensors that the config names; PEFT drops the others on loading, without a word",
            "Use the config that was saved with this file. --ignore M305 merges all that is in the file.",
        )


def _today(key: str, module: str, arch: Arch, whole: Mapping[str, str]) -> str:
    """A key with the module's name in memory, for adapters that use the name on disk."""
    tensor = f"{module}.weight"
    if tensor in arch.params or tensor not in whole:
        return key
    return PREFIX + whole[tensor].removesuffix(".weight") + key.removeprefix(PREFIX + module)


def _claimed_on_disk(case: Case, whole: Mapping[str, str]) -> set[str]:
    """Keys that the config asks for by names on disk (older generations, single experts), under today's names.

    They count where the file itself uses such names.
    """
    config, params = case.adapter.config, case.arch.params
    keys, written = set(), set()
    for name, tensor in case.checkpoint.tensors.items():
        module = name.removesuffix(".weight")
        is_matrix = module != name and len(tensor.shape) == 2
        if name in params or not is_matrix or not targets.is_target(config, module, case.arch):
            continue
        is_table = name in whole and params[whole[name]].kind == "Embedding"
        suffixes = [".lora_embedding_A", ".lora_embedding_B"] if is_table else [".lora_A.weight", ".lora_B.weight"]
        suffixes += [".lora_magnitude_vector"] if config.get("use_dora") else []
        written |= {PREFIX + module + suffix for suffix in suffixes}
        today = whole.get(name, name).removesuffix(".weight")
        keys |= {PREFIX + today + suffix for suffix in suffixes}
    return keys if written & case.adapter.tensors.keys() else set()


def _twins(arch: Arch) -> Mapping[str, frozenset[str]]:
    """Module → the modules whose weight is the same tensor, itself included."""
    groups = [frozenset(m.removesuffix(".weight") for m in tie.members if m.endswith(".weight")) for tie in arch.ties]
    return {module: group for group in groups for module in group}


def _module(key: str) -> str:
    """Path of the module that a key of a low-rank factor, of trained tokens or of a weight or bias belongs to."""
    path = key.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".bias").removesuffix(TOKENS)
    for wrapper in WRAPPERS:
        path = path.removesuffix(wrapper)
    head, _, factor = path.rpartition(".")
    return head if factor.startswith("lora_") else path


def _is_shared(key: str, present: Mapping[str, str], case: Case, twins: Mapping[str, frozenset[str]]) -> bool:
    """True for trained tokens of one end of a tied pair that are saved for the other end only, being the same."""
    if not key.endswith(TOKENS):
        return False
    module, config = _module(key), case.adapter.config
    same = [m for m in twins.get(module, ()) if targets.token_ids(config, m) == targets.token_ids(config, module)]
    return any(f"{PREFIX}{m}{TOKENS}" in present for m in same)


def _is_allowed(key: str, claimed: set[str], case: Case, twins: Mapping[str, frozenset[str]]) -> bool:
    """True for tensors that PEFT saves without being asked."""
    config, module = case.adapter.config, _module(key)
    if any(copy in key for copy in COPIES):
        return True
    if config.get("bias") == "all" and "bias" in key.rpartition(".")[2]:
        return True
    ends = {case.arch.input_embedding, case.arch.output_embedding}
    group = twins.get(module, frozenset({module}))
    if ".lora_" not in key and not key.endswith(TOKENS) and group & ends:
        return True
    tied_tokens = key.endswith(TOKENS) and any(f"{PREFIX}{m}{TOKENS}" in claimed for m in group)
    ensured = bool(config.get("ensure_weight_tying")) and len(group) > 1
    return tied_tokens or (ensured and any(_module(k) in group for k in claimed))


def fix(case: Case) -> Repair | None:
    """The config as the file has it: what is in the file was trained, what the config says is only a claim."""
    if not any(f.code == RULE.code for f in check(case)):
        return None
    config, held = case.adapter.config, _held(case)
    if held.saved & held.lora:
        return None  # PEFT cannot hold both for one module
    changes: dict[str, Any] = {}
    if held.dora and not config.get("use_dora") and held.dora >= held.lora:
        changes["use_dora"] = True
    if held.lora_bias and not config.get("lora_bias"):
        changes["lora_bias"] = True
    if held.saved and not held.saved <= _saved_by(config, case.arch):
        names = {shortest_name(module, case.arch) for module in held.saved}
        changes["modules_to_save"] = sorted({*(config.get("modules_to_save") or ()), *names})
    claimed = {m for m in _lora_modules(case.arch) if targets.is_target({**config, **changes}, m, case.arch)}
    changes |= _targets(case, held.lora, claimed)
    if not changes:
        return None
    words = tuple(f"{field}: {_short(config.get(field))} → {_short(new)}" for field, new in sorted(changes.items()))
    lost = sorted((claimed - held.lora) | _uneven(case, held.lora))
    missing = f"that nothing was lost: the file has no factors for {listed(lost)}, and has them for others of the kind"
    return Repair(RULE.code, words, config=changes, assumes=missing if lost else "")


@dataclass(frozen=True, slots=True)
class _Held:
    """Modules by what the file holds of them, under their names in memory."""

    lora: frozenset[str]
    dora: frozenset[str]
    lora_bias: frozenset[str]
    saved: frozenset[str]  # in full, and not as PEFT saves ends of the vocabulary by itself


def _held(case: Case) -> _Held:
    whole = {part.tensor: part.param for part in case.arch.parts if not part.index and part.rows is None}
    keys = [_today(key, module, case.arch, whole) for key, module in case.resolved.used.items()]
    fused = targets.target_parameters(case.adapter.config, case.arch)

    def having(*suffixes: str) -> frozenset[str]:
        modules = {_module(k).replace(".base_layer", "") for k in keys if k.endswith(suffixes)}
        return frozenset(modules - fused.keys())

    ends = {case.arch.input_embedding, case.arch.output_embedding}
    in_full = {_module(k) for k in keys if k.removeprefix(PREFIX) in case.arch.params and not k.endswith(".bias")}
    return _Held(
        lora=having(".lora_A.weight", ".lora_embedding_A"),
        dora=having(".lora_magnitude_vector"),
        lora_bias=having(".lora_B.bias"),
        saved=frozenset(in_full - ends),
    )


def _uneven(case: Case, held: frozenset[str]) -> set[str]:
    """Modules without factors, of a name that has them in other layers, where the config does not choose layers."""
    config = case.adapter.config
    wanted = config.get("target_modules")
    fields = ("layers_to_transform", "exclude_modules")
    chooses = isinstance(wanted, str) or any("." in str(name) for name in wanted or ()) or any(map(config.get, fields))
    names = {module.rpartition(".")[2] for module in held}
    return set() if chooses else {m for m in _lora_modules(case.arch) if m.rpartition(".")[2] in names} - held


def _lora_modules(arch: Arch) -> list[str]:
    return [p.module for p in arch.params.values() if p.kind in targets.LAYER_KINDS and p.name == f"{p.module}.weight"]


def _saved_by(config: Mapping[str, Any], arch: Arch) -> set[str]:
    return {param.module for param in targets.saved_params(config, arch)}


def _targets(case: Case, held: frozenset[str], claimed: set[str]) -> dict[str, Any]:
    """target_modules that name exactly the modules with factors; nothing where they do, or where none has."""
    modules = _lora_modules(case.arch)
    if not held or held == claimed or not held <= set(modules):
        return {}
    names = {module.rpartition(".")[2] for module in held}
    by_name = {module for module in modules if module.rpartition(".")[2] in names}
    found: dict[str, Any] = {"target_modules": sorted(names) if by_name == held else sorted(held)}
    if case.adapter.config.get("exclude_modules"):
        found["exclude_modules"] = None
    layers = ("layers_to_transform", "layers_pattern")
    return found | {field: None for field in layers if case.adapter.config.get(field) is not None}


def shortest_name(module: str, arch: Arch) -> str:
    """What modules_to_save may call a module: the last part of its path if no other module ends so, else the path."""
    last = module.rpartition(".")[2]
    others = {p.module for p in arch.params.values() if p.module.endswith(last)} - {module}
    return module if others else last


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


RULE = Rule(
    "M305",
    "config-disagrees",
    "error",
    check,
    fix=fix,
    may_ignore=True,
    modes=("F05", "F11", "F13", "F29", "F30", "F49"),
)
