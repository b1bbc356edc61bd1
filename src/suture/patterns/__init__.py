"""Regular expressions that somebody else wrote: what `re` says, in bounded time.

An adapter's config is data, and its patterns are run on every module's name. `re` backtracks: `(a+)+$` on a name of
forty letters takes days, holds the interpreter, and no thread, signal handler or timeout of Python's ends it. So a
pattern runs in this process only if its shape bounds the steps that it can take (`cost`): letters, dots, classes, a
few loops over one character, choices between plain texts. That is what PEFT's users write. Any other runs in a child
process (`child`) by the same `re`, until it has used up the CPU time of its group; then the kernel ends the child and
the config is refused. So nothing that PEFT accepts means something else here, and nothing has to be guessed: refusing
nested repetitions instead would refuse sound patterns and let `(a|a)(a|a)…` pass. The child costs some 30 ms, once.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

from suture.errors import FormatError
from suture.patterns.guard import GUARD, Ended

SECONDS = 0.8  # of CPU time for all that is asked of one group in the child
LONGEST = 80  # characters of a name that is tried in this process
MAX_COST = 50_000  # steps that a name may take in this process, by all patterns of a group: half a millisecond
MAX_CHARACTERS = 4_000_000  # of a group's patterns

How: TypeAlias = Literal["whole", "suffix", "below", "layer"]
# What PEFT puts around a pattern, by the field that it stands in.
_AROUND: dict[How, tuple[str, str]] = {
    "whole": ("", ""),
    "suffix": (r"(.*\.)?(", ")$"),
    "below": (r"(^|.*\.)", r"($|\..*)"),
    "layer": (r"(?:^|.*?\.)", r"\.(?P<idx>\d+)\."),
}

_CLASS = r"\[(?:0-9|a-z|A-Z|[A-Za-z0-9_.]|\\d)+\]"
_LETTER = r"(?:[A-Za-z0-9_-]|\\[.-]|\.)"
_PIECE = re.compile(
    rf"(?P<loop>(?:\.|\\[dw]|{_CLASS})[*+]\??)"
    rf"|\((?:\?:)?(?P<choice>{_LETTER}+(?:\|{_LETTER}+)*)\)"
    rf"|(?:{_LETTER}|\\[dw]|{_CLASS})"
)
_QUANTIFIED = re.compile(r"[*+?{]")


class Hit(NamedTuple):
    """A pattern that matches: its place in the group, and the layer's number where the pattern finds one."""

    place: int
    layer: str | None


@dataclass(slots=True)
class _State:
    """What is left of the group's time, and why nothing is left."""

    seconds: float
    refusal: FormatError | None = None


class Group:
    """Patterns in order, as one field of a config holds them, to be asked which of them match a name."""

    _keys = itertools.count()

    def __init__(self, patterns: tuple[str, ...], how: How) -> None:
        if (n := sum(map(len, patterns))) > MAX_CHARACTERS:
            raise _refused(f"patterns of {n} characters", f"at most {MAX_CHARACTERS}")
        before, after = _AROUND[how]
        self._patterns, self._how = patterns, how
        self._sources = [f"{before}{pattern}{after}" for pattern in patterns]
        self._compiled: dict[int, re.Pattern[str]] = {}
        self._key = next(self._keys)
        self._state = _State(SECONDS)
        left = MAX_COST
        self._near: list[int] = []  # places of those that are tried in this process
        self._far: list[int] = []
        for place, pattern in enumerate(patterns):
            steps = cost(pattern, n_around=0 if how == "whole" else 1)
            if steps is not None and steps <= left:
                left -= steps
                self._near.append(place)
            else:
                self._far.append(place)

    def first(self, name: str, stop: int | None = None) -> Hit | None:
        """The first pattern that matches; of those before the place `stop`, if that is given.

        Raises:
            FormatError: one before it is no regular expression, or takes too long.
        """
        n_patterns = len(self._patterns) if stop is None else stop
        return next(iter(self._hits(name, n_patterns, first=True)), None)

    def all(self, name: str) -> list[Hit]:
        """All patterns that match, in order. Raises FormatError as above."""
        return self._hits(name, len(self._patterns), first=False)

    def _hits(self, name: str, stop: int, *, first: bool) -> list[Hit]:
        near = self._near if len(name) <= LONGEST else []
        hits = []
        for place in near:
            if place >= stop:
                break
            if found := self._tried(place, name):
                hits.append(Hit(place, found.groupdict().get("idx")))
                if first:
                    break
        stop = hits[0].place if first and hits else stop
        far = self._far if len(name) <= LONGEST else range(len(self._sources))
        asked = self._asked(far, bisect_left(far, stop), name, first=first)
        return asked or hits if first else sorted([*hits, *asked])

    def _tried(self, place: int, name: str) -> re.Match[str] | None:
        if place not in self._compiled:
            self._compiled[place] = re.compile(self._sources[place])
        pattern = self._compiled[place]
        return (pattern.fullmatch if self._how == "whole" else pattern.match)(name)

    def _asked(self, far: Sequence[int], n: int, name: str, *, first: bool) -> list[Hit]:
        """The hits among the patterns at the first `n` of these places, by the child."""
        state = self._state
        if n == 0:
            return []
        if state.refusal is not None:
            raise state.refusal
        # The child knows a list of sources by its key; that for long names has all of them.
        request: dict[str, Any] = {"key": 2 * self._key + (far is not self._far), "sources": None, "n": n, "name": name}
        request |= {"whole": self._how == "whole", "first": first, "seconds": max(state.seconds, 0.001)}
        try:
            answer = GUARD.ask(request)
            if "unknown" in answer:
                answer = GUARD.ask(request | {"sources": [self._sources[place] for place in far]})
        except Ended as error:
            state.refusal = self._too_slow(far[:n], name, error)
            raise state.refusal from error
        state.seconds -= answer["used"]
        hits = [Hit(far[i], layer) for i, layer in answer["hits"]]
        if "bad" in answer and not (first and hits):
            self._no_expression(far[answer["bad"]], answer["reason"])
        return hits

    def _too_slow(self, far: Sequence[int], name: str, error: Ended) -> FormatError:
        others = f" or one of the {len(far) - 1} after it" if len(far) > 1 else ""
        return _refused(
            f"the pattern {_short(self._patterns[far[0]])}{others} cannot be tried on {_short(name)}: {error}",
            f"patterns that take less than {SECONDS:g} s of CPU time for all modules together",
            "Write no repetition of a repetition, or list the modules by name.",
        )

    def _no_expression(self, place: int, reason: str) -> NoReturn:
        raise _refused(
            f"{_short(self._patterns[place])} is not a regular expression: {reason[:200]}",
            "patterns as PEFT writes them",
        )


@lru_cache(maxsize=256)
def group(patterns: tuple[str, ...], how: How) -> Group:
    """The patterns of a field; asked for the same ones again, the same group.

    Args:
        patterns: as they stand in the config, in order.
        how: "whole": the whole name; "suffix": a whole dotted suffix of it; "below": a module or what lies below
            it; "layer": a list of layers, whose number is wanted.
    """
    return Group(patterns, how)


def cost(pattern: str, n_around: int = 0) -> int | None:
    """An upper bound of the steps of a match with a name of LONGEST characters; None for shapes of unknown cost.

    `k` loops over one character divide a name in at most comb(n + k, k) ways, and each choice between plain texts
    multiplies by their number. `n_around` loops stand around the pattern.
    """
    text = pattern.removeprefix("^").removesuffix("$") if not pattern.endswith(r"\$") else pattern
    place, n_loops, n_choices = 0, n_around, 1
    while place < len(text):
        piece = _PIECE.match(text, place)
        if piece is None or _QUANTIFIED.match(text, piece.end()):
            return None
        n_loops += piece["loop"] is not None
        n_choices *= 1 + (piece["choice"] or "").count("|")
        place = piece.end()
        if n_loops > 4 or n_choices > MAX_COST:
            return None
    return comb(LONGEST + n_loops, n_loops) * n_choices + len(pattern)


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:120] + "…")


def _refused(found: str, expected: str, do: str = "") -> FormatError:
    return FormatError(found, where="adapter_config.json", expected=expected, do=do)
