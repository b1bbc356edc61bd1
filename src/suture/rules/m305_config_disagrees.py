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
Use the config and the file that were saved together. If you are sure that everything in the file is meant, pass
`--ignore M305`: the merge uses every tensor of the file.

## References
- huggingface/peft#2118, huggingface/peft#2084: adapters that load in part
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from suture import targets
from suture.rewriting import PREFIX
from suture.rules.base import Case, Rule, from_problems, listed
from suture.values import Arch, Finding

TOKENS = ".token_adapter.trainable_tokens_delta"
COPIES = (".original_module.", ".modules_to_save.")
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
    missing = {key for key in claimed - unbound if key not in present and not _is_shared(key, present, twins)}
    extra = {present[key] for key in present if key not in claimed and not _is_allowed(key, claimed, case, twins)}
    yield from _missing(case, missing, len(claimed))
    yield from _extra(case, extra)


def _missing(case: Case, keys: set[str], n_claimed: int) -> Iterable[Finding]:
    if keys:
        yield RULE.finding(
            case.adapter.file,
            f"{len(keys)} of the {n_claimed} tensors that the config asks for are not in the file: {listed(keys)}",
            "all tensors that target_modules, modules_to_save and the other fields name",
            "Use the file and the config that were saved together, or save the adapter again.",
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


def _is_shared(key: str, present: Mapping[str, str], twins: Mapping[str, frozenset[str]]) -> bool:
    """True for trained tokens of one end of a tied pair that are saved for the other end only."""
    others = twins.get(_module(key), frozenset())
    return key.endswith(TOKENS) and any(f"{PREFIX}{m}{TOKENS}" in present for m in others)


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
    return tied_tokens or (bool(config.get("ensure_weight_tying")) and any(_module(k) in group for k in claimed))


RULE = Rule(
    "M305", "config-disagrees", "error", check, may_ignore=True, modes=("F05", "F11", "F13", "F29", "F30", "F49")
)
