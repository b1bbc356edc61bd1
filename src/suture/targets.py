"""What an adapter_config.json claims: which modules it targets, with which rank and scale, by PEFT's rules.

The rules are those of PEFT 0.21 (`tuners_utils.check_target_module_exists`, `utils/other.get_pattern_key`).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from suture.errors import FormatError
from suture.formats.adapter_config import is_number
from suture.patterns import group
from suture.values import Arch, Json, Param

# The fields of a config that decide what the adapter computes.
MEANING = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias"),
    *("target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "trainable_token_indices", "ensure_weight_tying", "peft_type"),
    *("layer_replication", "use_qalora", "alora_invocation_tokens", "init_lora_weights"),
)
MOVES_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations that change the base's weights
_PATH = re.compile(r"\^?(?:[A-Za-z0-9_.-]|\\[.-])+")  # a pattern in which nothing but the dot has a meaning
_PEFT_VERSION = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})(?:[.@]|$)")
LAYER_KINDS = frozenset({"Linear", "Conv1D", "Embedding", "Conv1d", "Conv2d", "Conv3d", "Unknown"})


@dataclass(frozen=True, slots=True)
class Expected:
    """What the config and the architecture alone say the adapter holds: tensors by file key, with their shapes."""

    lora_modules: tuple[str, ...]
    saved_modules: tuple[str, ...]
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def n_trainable(self) -> int:
        """Number of trainable values."""
        return sum(math.prod(shape) for shape in self.tensors.values())


def first_match(patterns: Mapping[str, int], name: str) -> int | None:
    """The value of the first pattern, in the order of the file, that matches a whole dotted suffix of `name`."""
    keys = tuple(patterns)
    first = _lookup(keys).first(name)
    return None if first is None else patterns[keys[first]]


def matching(patterns: Collection[str], name: str) -> tuple[str, ...]:
    """All patterns, in their order, that match a whole dotted suffix of `name`; the first is the one that counts."""
    keys = tuple(patterns)
    return tuple(keys[place] for place in _lookup(keys).places(name))


class _Lookup:
    """Patterns in order, to be asked which of them match a name.

    Most are plain paths, of which EVA writes one for each module: these are looked up, and only the others are tried
    one by one. In a path a dot matches any character, as PEFT takes each key for a regular expression.
    """

    def __init__(self, patterns: tuple[str, ...]) -> None:
        # length → positions of dots → path → its place
        self._paths: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        self._whole: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}  # the same, of paths after a ^
        self._places: list[int] = []  # of the others
        for place, pattern in enumerate(patterns):
            if not _PATH.fullmatch(pattern):
                self._places.append(place)
                continue
            table = self._whole if pattern.startswith("^") else self._paths
            path, dots = _literal(pattern.removeprefix("^"))
            table.setdefault(len(path), {}).setdefault(dots, {}).setdefault(path, place)
        self._others = group(tuple(patterns[place] for place in self._places), "suffix")

    def first(self, name: str) -> int | None:
        """The place of the first pattern that matches a whole dotted suffix of `name`."""
        found = min(self._paths_of(name), default=None)
        n_before = len(self._places) if found is None else bisect_left(self._places, found)
        other = self._others.first(name, n_before)
        return found if other is None else self._places[other.place]

    def places(self, name: str) -> list[int]:
        """The places of all patterns that match a whole dotted suffix of `name`, in order."""
        others = [self._places[hit.place] for hit in self._others.all(name)]
        return sorted([*self._paths_of(name), *others])

    def _paths_of(self, name: str) -> Iterable[int]:
        for start in [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]:
            for tables in (self._paths, self._whole) if start == 0 else (self._paths,):
                for dots, table in tables.get(len(name) - start, {}).items():
                    if (place := table.get(_dotted(name[start:], dots))) is not None:
                        yield place


def _literal(pattern: str) -> tuple[str, tuple[int, ...]]:
    """A path as text, and where in it any letter will do: at its dots, but for those after a backslash."""
    letters = re.findall(r"\\?.", pattern)
    return "".join(letter[-1] for letter in letters), tuple(i for i, letter in enumerate(letters) if letter == ".")


def _dotted(text: str, positions: tuple[int, ...]) -> str:
    """The text with a dot at each of these positions."""
    letters = list(text)
    for i in positions:
        letters[i] = "."
    return "".join(letters)


@lru_cache(maxsize=1024)
def _lookup(patterns: tuple[str, ...]) -> _Lookup:
    return _Lookup(patterns)


def rank_and_alpha(config: Json, name: str) -> tuple[int, float]:
    """Rank and alpha of one module, after rank_pattern and alpha_pattern."""
    rank, alpha = (_of_pattern(config, field, name) for field in ("rank_pattern", "alpha_pattern"))
    r = number(config, "r", 8) if rank is None else rank
    return int(r), float(number(config, "lora_alpha", 8) if alpha is None else alpha)


def _of_pattern(config: Json, field: str, name: str) -> float | None:
    value = first_match(config.get(field) or {}, name)
    return None if value is None else number({field: value}, field, value)


def peft_version(config: Json) -> tuple[int, int] | None:
    """The first two numbers of the PEFT that wrote the config; None where it does not tell, as old ones."""
    match = _PEFT_VERSION.match(str(config.get("peft_version") or ""))
    return (int(match[1]), int(match[2])) if match else None


def scale(config: Json, name: str) -> float:
    """s = α / r, or α / √r with use_rslora."""
    rank, alpha = rank_and_alpha(config, name)
    if rank <= 0:
        raise FormatError(
            f"rank {rank} for {name}",
            where="adapter_config.json",
            expected="a positive number in r and rank_pattern",
            do="Use the config that was saved with the adapter.",
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def meaning(config: Json) -> dict[str, Any]:
    """The fields of an adapter's config that decide what it computes, in one spelling."""
    found = {}
    for name in MEANING:
        value = config.get(name)
        if isinstance(value, (list, tuple, set, frozenset)):
            value = sorted(value, key=str)
        if name == "init_lora_weights" and not str(value).lower().startswith(MOVES_BASE):
            value = None
        found[name] = value or None
    return found


def changed_fields(then: Json, now: Json) -> list[tuple[str, Any, Any]]:
    """The fields that decide what an adapter computes and differ between two configs: name, value then, value now."""
    old, new = meaning(then), meaning(now)
    return [(name, old[name], new[name]) for name in old if old[name] != new[name]]


def number(config: Json, key: str, default: float) -> float:
    """A number of the config.

    Raises:
        FormatError: there is something else under the key.
    """
    value = config.get(key, default)
    if not is_number(value):
        raise FormatError(f"{key} is {value!r}", where="adapter_config.json", expected="a finite number")
    return value


def is_target(config: Json, module: str, arch: Arch) -> bool:
    """True when `target_modules` asks for a low-rank update of this module."""
    if _is_excluded(config, module):
        return False
    targets = config.get("target_modules")
    if not targets:
        return False
    if isinstance(targets, str):
        if targets.lower() == "all-linear":
            return _is_hidden_linear(module, arch) and not _is_head(config, module, arch)
        return group((targets,), "whole").first(module) is not None
    return module in targets or (_ends_with_any(module, targets) and _is_wanted_layer(config, module))


def _is_excluded(config: Json, module: str) -> bool:
    excluded = config.get("exclude_modules")
    if isinstance(excluded, str) and group((excluded,), "whole").first(module):
        return True
    if excluded and not isinstance(excluded, str) and (module in excluded or _ends_with_any(module, excluded)):
        return True
    return group(tuple(config.get("modules_to_save") or ()), "below").first(module) is not None


def _is_hidden_linear(module: str, arch: Arch) -> bool:
    weight = arch.params.get(f"{module}.weight")
    return weight is not None and weight.kind in ("Linear", "Conv1D", "Unknown")


def _is_head(config: Json, module: str, arch: Arch) -> bool:
    if arch.output_embedding is not None:
        return module == arch.output_embedding
    return config.get("task_type") == "SEQ_CLS" and module in ("score", "classifier")


def _is_wanted_layer(config: Json, module: str) -> bool:
    """`layers_to_transform`: the first number in the path is the layer's."""
    wanted = config.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    patterns = config.get("layers_pattern") or ()
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    if patterns:
        hit = group(tuple(patterns), "layer").first(module)
        number = hit.layer if hit else None
    else:
        found = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", module)
        number = found["idx"] if found else None
    if number is None or len(number) > 20:  # of a name; Python refuses to read thousands of digits
        return False
    return int(number) in ([wanted] if isinstance(wanted, int) else wanted)


def target_parameters(config: Json, arch: Arch) -> Mapping[str, tuple[Param, ...]]:
    """Fused parameters named by `target_parameters`, by module, in the order in which PEFT wraps them (inner first)."""
    names = config.get("target_parameters") or ()
    found: dict[str, list[Param]] = {}
    for param in arch.params.values():
        if param.name in names or _ends_with_any(param.name, names):
            found.setdefault(param.module, []).append(param)
    return {module: tuple(params) for module, params in found.items()}


def token_ids(config: Json, module: str) -> tuple[int, ...]:
    """Row numbers of trainable_token_indices for a module that holds trained tokens.

    A plain list, or a dict that does not name the module, means the input embedding and all that is tied to it.
    """
    indices = config.get("trainable_token_indices")
    if not isinstance(indices, Mapping):
        return tuple(indices or ())
    named = [tuple(ids) for name, ids in indices.items() if module.endswith(name)]
    others = {tuple(ids) for ids in indices.values()}
    return named[0] if named else (others.pop() if len(others) == 1 else ())


def _trains_tokens(config: Json, param: Param, arch: Arch) -> bool:
    indices = config.get("trainable_token_indices")
    if not indices or not param.name.endswith(".weight"):
        return False
    if isinstance(indices, Mapping):
        return any(param.module.endswith(name) for name in indices)
    return param.module == arch.input_embedding


def saved_params(config: Json, arch: Arch) -> tuple[Param, ...]:
    """Parameters that `modules_to_save` trains in full: all those below a module whose path ends with a given name."""
    names = tuple(config.get("modules_to_save") or ())
    return tuple(p for p in arch.params.values() if any(m.endswith(names) for m in _ancestors(p)) and names)


def _ancestors(param: Param) -> Iterable[str]:
    parts = param.module.split(".")
    return (".".join(parts[: n + 1]) for n in range(len(parts)))


def expected(config: Json, arch: Arch) -> Expected:
    """The tensors that an adapter with this config holds on this architecture. Reads no weight.

    Embedding copies that `save_embedding_layers` may add are not part of it.
    """
    tensors: dict[str, tuple[int, ...]] = {}
    lora_modules = []
    for param in arch.params.values():
        if (
            param.kind in LAYER_KINDS
            and param.name == f"{param.module}.weight"
            and is_target(config, param.module, arch)
        ):
            lora_modules.append(param.module)
            tensors |= _lora_tensors(config, param)
    for module, params in target_parameters(config, arch).items():
        for level, param in enumerate(reversed(params)):
            prefix = f"base_model.model.{module}" + ".base_layer" * level
            tensors |= _expert_tensors(config, param, prefix)
    saved = saved_params(config, arch)
    tensors |= {f"base_model.model.{p.name}": p.shape for p in saved}
    for param in arch.params.values():
        if _trains_tokens(config, param, arch):
            key = f"base_model.model.{param.module}.token_adapter.trainable_tokens_delta"
            tensors[key] = (len(token_ids(config, param.module)), param.shape[-1])
    tensors |= _biases(config, arch, lora_modules)
    return Expected(tuple(lora_modules), tuple(sorted({p.module for p in saved})), tensors)


def _lora_tensors(config: Json, param: Param) -> dict[str, tuple[int, ...]]:
    rank, _ = rank_and_alpha(config, param.module)
    prefix, shape = f"base_model.model.{param.module}", param.shape
    if param.kind == "Embedding":
        table = {f"{prefix}.lora_embedding_A": (rank, shape[0]), f"{prefix}.lora_embedding_B": (shape[1], rank)}
        return {**table, **({f"{prefix}.lora_magnitude_vector": (shape[1],)} if config.get("use_dora") else {})}
    n_out, n_in = (shape[1], shape[0]) if param.kind == "Conv1D" else shape[:2]
    ones = (1,) * (len(shape) - 2)
    tensors: dict[str, tuple[int, ...]] = {
        f"{prefix}.lora_A.weight": (rank, n_in, *shape[2:]),
        f"{prefix}.lora_B.weight": (n_out, rank, *ones),
    }
    if config.get("use_dora"):
        tensors[f"{prefix}.lora_magnitude_vector"] = (1, n_out, *ones) if ones else (n_out,)
    if config.get("lora_bias"):
        tensors[f"{prefix}.lora_B.bias"] = (n_out,)
    return tensors


def _expert_tensors(config: Json, param: Param, prefix: str) -> dict[str, tuple[int, ...]]:
    if len(param.shape) not in (2, 3):
        return {}  # PEFT refuses it: only matrices and stacks of matrices have factors
    rank, _ = rank_and_alpha(config, param.name)
    n_experts, n_rows, n_cols = param.shape if len(param.shape) == 3 else (1, *param.shape)
    n_out, n_in = (n_cols, n_rows) if param.transposed else (n_rows, n_cols)
    return {
        f"{prefix}.lora_A.weight": (rank * n_experts, n_in),
        f"{prefix}.lora_B.weight": (n_out, rank * n_experts),
    }


def _biases(config: Json, arch: Arch, lora_modules: Sequence[str]) -> dict[str, tuple[int, ...]]:
    mode, modules = config.get("bias", "none"), set(lora_modules)
    biases = {}
    for param in arch.params.values():
        if not param.name.endswith(".bias") or mode not in ("all", "lora_only"):
            continue
        if param.module in modules:
            biases[f"base_model.model.{param.module}.base_layer.bias"] = param.shape
        elif mode == "all":
            biases[f"base_model.model.{param.name}"] = param.shape
    return biases


def _ends_with_any(name: str, suffixes: Iterable[str]) -> bool:
    return any(name.endswith(f".{suffix}") for suffix in suffixes)
