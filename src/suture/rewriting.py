"""One rule that would make all keys of an adapter fit its base: found for the whole file or not at all."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

PREFIX = "base_model.model."
WRAPPERS = (
    *("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.", "module."),
    *("policy.", "pretrained_model."),
)
GENERATIONS = ("", "model.", "transformer.", "model.language_model.", "language_model.model.", "language_model.",
               "model.text_model.", "backbone.", "thinker.model.", "model.model.")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What to do to every key: in words, for one key before and after, and as new names for all that change."""

    words: str
    before: str
    after: str
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Step:
    words: str
    apply: Callable[[str], str]
    is_exchange: bool = False


def find(keys: Iterable[str], fits: Callable[[str], bool], *, may_meet: bool = False) -> Rewriting | None:
    """The simplest rewriting after which every key fits and no two are equal; None if there is none.

    Args:
        may_meet: allow that two keys become equal, for files that hold tensors twice.
    """
    keys = sorted(keys, key=lambda key: (fits(key), key))  # what does not fit yet decides, and is few tries
    for steps in _candidates(_adapter_name(keys)):
        if not all(fits(_rewrite(key, steps, fits)) for key in keys):
            continue
        new = {key: _rewrite(key, steps, fits) for key in keys}
        changed = next((key for key in sorted(keys) if new[key] != key), None)
        if changed is not None and (may_meet or len(set(new.values())) == len(new)):
            names = {key: name for key, name in new.items() if name != key}
            return Rewriting(" and ".join(s.words for s in steps), changed, new[changed], names)
    return None


def _adapter_name(keys: Iterable[str]) -> str:
    """The adapter's name, where it stayed in the keys: what stands behind lora_A in all of them."""
    found = {match[1] for key in keys if (match := re.search(r"\.lora_(?:A|embedding_A)\.([^.]+)(?=\.weight$|$)", key))}
    return found.pop() if len(found) == 1 and found != {"weight"} else "default"


def _candidates(name: str) -> Iterable[tuple[_Step, ...]]:
    """Cleanings alone first, then with one exchange of the leading path; fewest steps first."""
    cleanings = (_names(name), _wrappers(), _doubled(), _bare(), *_experts())
    for n in range(1, len(cleanings) + 1):
        yield from itertools.combinations(cleanings, n)
    for n in range(len(cleanings) + 1):
        for chosen in itertools.combinations(cleanings, n):
            yield from ((*chosen, step) for step in _exchanges())


def _rewrite(key: str, steps: Iterable[_Step], fits: Callable[[str], bool]) -> str:
    """The key after all steps. An exchange of the leading path leaves alone what fits without it, such as a head."""
    for step in steps:
        key = key if step.is_exchange and fits(key) else step.apply(key)
    return key


def _names(name: str) -> _Step:
    """`lora_A.NAME`, as in memory; modules_to_save has the name too, and neither of both in a file."""
    name = rf"(?:\.{re.escape(name)})+"
    saved = re.compile(rf"\.modules_to_save{name}(?=\.)")
    vector = re.compile(rf"(\.lora_magnitude_vector){name}\.weight$")
    others = re.compile(rf"(\.(?:lora_\w+|trainable_tokens_delta)){name}(?=\.|$)")
    words = "drop the adapter's name (.default) from the keys"
    return _Step(words, lambda key: others.sub(r"\1", vector.sub(r"\1", saved.sub("", key))))


def _wrappers() -> _Step:
    pattern = re.compile("|".join(rf"(?:(?<=\.)|^){re.escape(w)}" for w in WRAPPERS))
    return _Step("drop the wrappers' prefixes (_orig_mod., module. …)", lambda key: pattern.sub("", key))


def _doubled() -> _Step:
    return _Step("drop the doubled base_model.model.", lambda key: re.sub(r"^(base_model\.model\.)+", PREFIX, key))


def _bare() -> _Step:
    return _Step("put base_model.model. before every key", lambda key: key if key.startswith(PREFIX) else PREFIX + key)


def _experts() -> Iterable[_Step]:
    """Mixtral's names of experts, which other tools and versions write as Qwen's, and the other way round."""
    parts = (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"))
    block = r"\.(?:block_sparse_moe|mlp)\.(?=(?:experts\.\d|gate\.))"
    for path, names in (("mlp", dict(parts)), ("block_sparse_moe", {new: old for old, new in parts})):
        number = re.compile(rf"(\.experts\.\d+)\.({'|'.join(names)})(?=\.)")

        def renamed(key: str, path: str = path, names: dict[str, str] = names, number: re.Pattern[str] = number) -> str:
            return number.sub(lambda m: f"{m[1]}.{names[m[2]]}", re.sub(block, f".{path}.", key))

        yield _Step(f"name the experts {path}.experts.N.{next(iter(names.values()))}", renamed)


def _exchanges() -> Iterable[_Step]:
    for old, new in itertools.product(GENERATIONS, GENERATIONS):
        if old == new:
            continue
        words = f"write {new} for {old} after {PREFIX}" if old and new else (
            f"insert {new} after {PREFIX}" if new else f"drop {old} after {PREFIX}"
        )  # fmt: skip
        yield _Step(words, lambda key, old=old, new=new: _exchange(key, old, new), is_exchange=True)  # type: ignore[misc]


def _exchange(key: str, old: str, new: str) -> str:
    head = PREFIX + old
    if not key.startswith(head):
        return key
    return PREFIX + new + key[len(head) :]
