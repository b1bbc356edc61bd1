"""One rule that would make all keys of an adapter fit its base: found for the whole file or not at all."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PREFIX = "base_model.model."
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")
GENERATIONS = ("", "model.", "transformer.", "model.language_model.", "language_model.model.", "language_model.",
               "model.text_model.", "backbone.", "thinker.model.", "model.model.")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What to do to every key, in words, and one key before and after."""

    words: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class _Step:
    words: str
    apply: Callable[[str], str]


def find(keys: Iterable[str], fits: Callable[[str], bool]) -> Rewriting | None:
    """The simplest rewriting after which every key fits and no two are equal; None if there is none."""
    keys = sorted(keys)
    for steps in _candidates():
        if not all(fits(_rewrite(key, steps)) for key in keys):
            continue
        new = {key: _rewrite(key, steps) for key in keys}
        changed = next((key for key in keys if new[key] != key), None)
        if changed is not None and len(set(new.values())) == len(new):
            return Rewriting(" and ".join(s.words for s in steps), changed, new[changed])
    return None


def _candidates() -> Iterable[tuple[_Step, ...]]:
    """Cleanings alone first, then with one exchange of the leading path; fewest steps first."""
    cleanings = (_names(), _wrappers(), _doubled(), _bare())
    for n in range(1, len(cleanings) + 1):
        yield from itertools.combinations(cleanings, n)
    for n in range(len(cleanings) + 1):
        for chosen in itertools.combinations(cleanings, n):
            yield from ((*chosen, step) for step in _exchanges())


def _rewrite(key: str, steps: Iterable[_Step]) -> str:
    for step in steps:
        key = step.apply(key)
    return key


def _names() -> _Step:
    pattern = re.compile(r"(\.(?:lora_\w+|modules_to_save|trainable_tokens_delta))((?:\.default)+)(?=\.|$)")
    return _Step("drop the adapter's name (.default) from the keys", lambda key: pattern.sub(r"\1", key))


def _wrappers() -> _Step:
    pattern = re.compile("|".join(rf"(?:(?<=\.)|^){re.escape(w)}" for w in WRAPPERS))
    return _Step("drop the wrappers' prefixes (_orig_mod., module. …)", lambda key: pattern.sub("", key))


def _doubled() -> _Step:
    return _Step("drop the doubled base_model.model.", lambda key: re.sub(r"^(base_model\.model\.)+", PREFIX, key))


def _bare() -> _Step:
    return _Step("put base_model.model. before every key", lambda key: key if key.startswith(PREFIX) else PREFIX + key)


def _exchanges() -> Iterable[_Step]:
    for old, new in itertools.product(GENERATIONS, GENERATIONS):
        if old == new:
            continue
        words = f"write {new} for {old} after {PREFIX}" if old and new else (
            f"insert {new} after {PREFIX}" if new else f"drop {old} after {PREFIX}"
        )  # fmt: skip
        yield _Step(words, lambda key, old=old, new=new: _exchange(key, old, new))  # type: ignore[misc]


def _exchange(key: str, old: str, new: str) -> str:
    head = PREFIX + old
    if not key.startswith(head) or "lm_head" in key:
        return key
    return PREFIX + new + key[len(head) :]
