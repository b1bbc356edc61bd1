"""Finds what the numbers and names of many built models have in common: formulas of sizes, conditions on switches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from suture.arch.formula import evaluate, holds

Sizes = Mapping[str, int]
Combo = tuple[bool, ...]


def formula(values: Sequence[int], sizes: Sequence[Sizes]) -> str | None:
    """The simplest formula that gives each of the values from the sizes beside it."""
    if len(set(values)) == 1:
        return str(values[0])
    keys = sorted(set.intersection(*(set(s) for s in sizes)))
    terms = {text: vector for text in _terms(keys) if (vector := _vector(text, sizes)) is not None}
    wanted = tuple(values)
    for text, vector in terms.items():
        for n in range(1, 9):
            if tuple(n * v for v in vector) == wanted:
                return _times(n, text)
    return _sum(wanted, terms)


def _sum(wanted: tuple[int, ...], terms: Mapping[str, tuple[int, ...]]) -> str | None:
    """Two terms: a term and a number, or two terms, each up to three times."""
    whole = {**terms, "1": (1,) * len(wanted)}
    by_vector: dict[tuple[int, ...], str] = {}
    for n in (1, 2, 3):
        for text, vector in whole.items():
            by_vector.setdefault(tuple(n * v for v in vector), _times(n, text))
    for vector, text in by_vector.items():
        other = by_vector.get(tuple(w - v for w, v in zip(wanted, vector, strict=True)))
        if other is not None:
            return f"{text}+{other}"
    return None


def _times(n: int, text: str) -> str:
    return text if n == 1 else str(n) if text == "1" else f"{n}*{text}"


def _terms(keys: Sequence[str]) -> Iterator[str]:
    """Products of up to two keys, divided by up to one."""
    yield from keys
    pairs = [(a, b) for i, a in enumerate(keys) for b in keys[i:]]
    yield from (f"{a}*{b}" for a, b in pairs)
    yield from (f"{a}/{b}" for a in keys for b in keys if a != b)
    yield from (f"{a}*{b}/{c}" for a, b in pairs for c in keys if c not in (a, b))


def _vector(text: str, sizes: Sequence[Sizes]) -> tuple[int, ...] | None:
    vector = [evaluate(text, s) for s in sizes]
    return None if None in vector else tuple(v for v in vector if v is not None)


def conditions(keys: Sequence[str], taken: Sequence[Sizes], refused: Sequence[Sizes]) -> list[str]:
    """Divisibilities that hold in all configs that were taken, and each fail in one that was refused.

    Raises:
        ValueError: a refusal remains that none of them explains.
    """
    pairs = [f"{a}%{b}" for a in keys for b in (*keys, "2") if a != b]
    even = [f"{a}/{b}%2" for a in keys for b in keys if a != b]
    true = [c for c in (*pairs, *even) if all(holds(c, s) for s in taken)]
    left, found = list(refused), []
    while left:
        best = max(true, key=lambda c: sum(not holds(c, s) for s in left), default=None)
        if best is None or all(holds(best, s) for s in left):
            raise ValueError(f"no divisibility explains that this config is refused: {left[0]}")
        found.append(best)
        left = [s for s in left if holds(best, s)]
    return sorted(found)


def when(combos: Iterable[Combo], every: Sequence[Combo], switches: Sequence[str]) -> list[dict[str, bool]]:
    """The combinations of switches among all, as the fewest sets of settings, of which each combination has one."""
    chosen = set(combos)
    if not chosen:
        return []
    fixed = {k: values.pop() for i, k in enumerate(switches) if len(values := {c[i] for c in chosen}) == 1}
    meant = {c for c in every if all(c[switches.index(k)] == v for k, v in fixed.items())}
    if meant == chosen:
        return [fixed]
    halves = [
        [part for value in (False, True) for part in when({c for c in chosen if c[i] is value}, every, switches)]
        for i, k in enumerate(switches)
        if k not in fixed
    ]
    return min(halves, key=len)


def merged(orders: Iterable[Sequence[str]]) -> list[str]:
    """One order of all names that agrees with each of the given orders."""
    result: list[str] = []
    for order in sorted(orders, key=len, reverse=True):
        at = 0
        for name in order:
            if name in result:
                at = result.index(name) + 1
            else:
                result.insert(at, name)
                at += 1
    return result
