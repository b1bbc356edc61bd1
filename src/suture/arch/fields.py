"""Values of config fields of which the generator of the table has shown that they change no parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

# An accepted list is one string of words, then single values; these are the words, each a set of values.
MAX_COUNT = 100_000
MAX_WHOLE = 2**31
MAX_FLOAT = 1e9
LAYER_TYPES = ("full_attention", "sliding_attention")
_ROPE_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_MIN_BASE, _MAX_FACTOR = 100, 1e6


def accepts(accepted: Sequence[Any], value: Any, *, layers: int, vocab: int) -> bool:
    """Whether a config may hold this value.

    Args:
        accepted: a string of words of `WORDS`, then single values.
        layers: number of layers, for lists of that length.
        vocab: size of the vocabulary, for token ids.
    """
    if any(type(value) is type(v) and value == v for v in accepted[1:]):
        return True
    return any(WORDS[word](value, layers, vocab) for word in accepted[0].split())


def _is_any(value: Any) -> bool:
    """JSON data without a tie flag, and with no number inside of it that could be taken for a count."""
    if isinstance(value, (int, float)):
        return isinstance(value, bool) or _is_number(value, 0, MAX_WHOLE)
    return _is_plain(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(not str(k).startswith(("tie_", "__float__")) and _is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, str)) or _is_number(value, -MAX_COUNT, MAX_COUNT)


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and _is_number(value, low, high)


def _is_rope(value: Any, kinds: Container[str] = ("default", "linear", "llama3")) -> bool:
    """A scaling of rotary embeddings that Transformers takes: the keys of its type, and numbers that can be used."""
    if not isinstance(value, Mapping):
        return False
    said = {value[k] for k in ("rope_type", "type") if isinstance(value.get(k), str)}
    numbers = {k: v for k, v in value.items() if k not in ("rope_type", "type")}
    kind = said.pop() if len(said) == 1 else ""
    theta, share = numbers.pop("rope_theta", _MIN_BASE), numbers.pop("partial_rotary_factor", 1)
    if kind not in kinds or set(numbers) != set(_ROPE_NUMBERS[kind]):
        return False
    if not _is_number(theta, _MIN_BASE, MAX_FLOAT) or not _is_number(share, 0.25, 1):
        return False
    low, high = numbers.pop("low_freq_factor", 1), numbers.pop("high_freq_factor", 2)
    fit = all(_is_number(v, 1, MAX_FLOAT if "max" in k else _MAX_FACTOR) for k, v in numbers.items())
    return fit and _is_number(low, 0.5, 64) and _is_number(high, 0.5, 64) and low < high


def _is_ropes(value: Any) -> bool:
    """One scaling for each type of layer."""
    return isinstance(value, Mapping) and set(value) == set(LAYER_TYPES) and all(_is_rope(v) for v in value.values())


def _is_list(value: Any, length: int, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == length and all(fits(v) for v in value)


WORDS: Mapping[str, Callable[[Any, int, int], bool]] = {
    "null": lambda v, *_: v is None,
    "bool": lambda v, *_: isinstance(v, bool),
    "text": lambda v, *_: isinstance(v, str),
    "whole": lambda v, *_: _is_whole(v, 0, MAX_WHOLE),
    "positive": lambda v, *_: _is_whole(v, 1, MAX_WHOLE),
    "count": lambda v, *_: _is_whole(v, 1, MAX_COUNT),
    "float": lambda v, *_: isinstance(v, float) and math.isfinite(v) and 0 <= v <= MAX_FLOAT,
    "unit": lambda v, *_: isinstance(v, float) and 0 <= v <= 1,
    "share": lambda v, *_: isinstance(v, float) and 0.25 <= v <= 1,
    "token": lambda v, _, vocab: _is_whole(v, 0, vocab - 1),
    "tokens": lambda v, _, vocab: isinstance(v, (list, tuple)) and all(_is_whole(t, 0, vocab - 1) for t in v),
    "layers": lambda v, layers, _: _is_list(v, layers, lambda t: t in LAYER_TYPES),
    "marks": lambda v, layers, _: _is_list(v, layers, lambda t: _is_whole(t, 0, 1)),
    "rope": lambda v, *_: _is_rope(v),
    "stretched_rope": lambda v, *_: _is_rope(v, ("dynamic", "yarn")),
    "ropes": lambda v, *_: _is_ropes(v),
    "data": lambda v, *_: isinstance(v, Mapping) and _is_plain(v),
    "any": lambda v, *_: _is_any(v),
}
