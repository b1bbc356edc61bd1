"""Why a tensor is wrong, in plain words: what is stored is held against what usual mistakes would give.

For each hypothesis h the file is compared with W + h · D, where D is the update: h = 0 is the base, 2 the update twice,
√r the scale of rsLoRA in the place of LoRA's, and so on. The share of the update in the file is its projection on D:

    applied = ⟨M − W, D⟩ / ⟨D, D⟩
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from suture.values import Operation, Term
from suture.verification import judge, looks, reading
from suture.verification.expect import Expected, expect, walk
from suture.verification.judge import Chance, Subject
from suture.verification.reading import Floats
from suture.verification.rounding import FORMATS, Mask, agrees, is_neighbour

NEARLY_ALL = 0.995  # of the values fit: the hypothesis holds
FEW = 0.02  # a smaller share of wrong values is damage, not another update
UNRELATED = 0.5  # a cosine below this: the change has another direction than the update


@dataclass(frozen=True, slots=True)
class Reason:
    """The projection on the update, and the words."""

    applied: float | None
    words: str


@dataclass(frozen=True, slots=True)
class _Sample:
    """The sampled rows of a tensor: their numbers, what is stored, what is expected, and what decided at random."""

    subject: Subject
    rows: tuple[slice, ...]
    stored: Floats
    expected: Expected
    chance: Chance | None

    @property
    def numbers(self) -> Floats:
        return np.concatenate([np.arange(r.start, r.stop) for r in self.rows]).astype(np.float64)

    @property
    def change(self) -> Floats:
        return self.stored - self.expected.source

    @property
    def update(self) -> Floats:
        return self.expected.exact - self.expected.source

    def only(self, mask: Mask) -> _Sample:
        """Some of the rows."""
        e = self.expected
        expected = Expected(e.source[mask], e.exact[mask], e.error[mask], e.update[mask])
        chance = self.chance and Chance(self.chance.rows[mask], self.chance.bits[mask])
        return replace(self, stored=self.stored[mask], expected=expected, chance=chance)

    def right(self) -> Mask:
        """True where the value is right: rounded as planned, or several times where it is not planned at random."""
        if self.chance is None:
            return judge.passes(self.subject, self.stored, self.expected)
        return judge.is_right(self.subject, self.stored, self.expected, self.chance)

    def fits(self, exact: Floats, extra: Floats | float = 0.0) -> bool:
        """True when nearly all stored values are `exact`, with slack for roundings on the way."""
        slack = 2 * FORMATS[self.subject.found.dtype].half_ulp(np.abs(exact))
        return self.share(exact, extra, slack) >= NEARLY_ALL

    def share(self, exact: Floats, extra: Floats | float = 0.0, slack: Floats | float = 0.0) -> float:
        """The share of the stored values that are `exact`, up to rounding."""
        e = self.expected
        expected = Expected(e.source, exact, e.error + slack, e.update + extra)
        return float(np.mean(judge.passes(self.subject, self.stored, expected)))


def why(subject: Subject, siblings: Iterable[Operation]) -> Reason:
    """The reason for a wrong tensor. `siblings` are operations that start from the same source tensor, as ties do."""
    with np.errstate(all="ignore"):
        sample = _sample(subject)
        applied = _projection(sample.change, sample.update)
        words = _of_siblings(sample, siblings)
        if words is None:
            words = _of_copy(sample) if subject.operation.is_copy else _of_terms(sample)
        return Reason(applied, words)


def _sample(subject: Subject) -> _Sample:
    operation = subject.operation
    rows = looks.rows(operation, full=False)
    data = np.concatenate([judge.stored_bytes(subject, r) for r in rows])
    stored = reading.floats(data, subject.found.dtype).reshape(-1, operation.cols)
    drawn = [c for block in walk(operation, subject.inputs, rows) if (c := judge.chance(subject, block)) is not None]
    chance = Chance(np.concatenate([c.rows for c in drawn]), np.concatenate([c.bits for c in drawn])) if drawn else None
    return _Sample(subject, rows, stored, _expected(operation, subject, rows), chance)


def _expected(operation: Operation, subject: Subject, rows: tuple[slice, ...]) -> Expected:
    walked = walk(operation, subject.inputs, rows)
    return _joined(expect(operation, block.terms, subject.inputs, block.rows) for block in walked)


def _joined(parts: Iterable[Expected]) -> Expected:
    fields = ([p.source, p.exact, p.error, p.update] for p in parts)
    return Expected(*(np.concatenate(arrays) for arrays in zip(*fields, strict=True)))


def _projection(change: Floats, update: Floats) -> float | None:
    ok = np.isfinite(change) & np.isfinite(update)
    norm = float(np.square(update[ok]).sum())
    return float((change[ok] * update[ok]).sum()) / norm if norm > 0 else None


def _of_siblings(sample: _Sample, siblings: Iterable[Operation]) -> str | None:
    """A tensor that holds what a tied partner should hold, or the updates of both."""
    own = sample.subject.operation
    for other in siblings:
        if (other.rows, other.cols) != (own.rows, own.cols):
            continue
        theirs = _expected(other, sample.subject, sample.rows)
        if np.array_equal(theirs.exact, sample.expected.exact):
            continue
        if sample.fits(theirs.exact, theirs.update):
            return f"it holds what {other.tensor} should hold"
        both = sample.expected.exact + (theirs.exact - theirs.source)
        if own.terms and other.terms and sample.fits(both, theirs.update):
            return f"the update of {other.tensor} is in here as well: tied tensors were merged into one"
    return None


def _of_copy(sample: _Sample) -> str:
    own = sample.subject.operation
    for name in ("BF16", "F16"):
        other = name != sample.subject.found.dtype
        if other and agrees(sample.stored, sample.expected.exact, np.zeros_like(sample.stored), FORMATS[name]).all():
            return f"the adapter does not change this tensor, but its values went through {name}"
    return f"the adapter does not change this tensor, but it is not the {own.source.origin}'s"


def _of_terms(sample: _Sample) -> str:
    """The first term whose rows are wrong, or the whole tensor where there is only one."""
    terms = sample.subject.operation.terms
    if len(terms) < 2:
        return _words(sample, terms) or _small_or_elsewhere(sample)
    numbers = sample.numbers
    for term in terms:
        mask = (numbers >= term.start) & (numbers < term.stop)
        words = _words(sample.only(mask), (term,)) if mask.any() else None
        if words is not None:
            return f"rows {term.start}:{term.stop} ({term.module}): {words}"
    outside = np.logical_and.reduce([(numbers < t.start) | (numbers >= t.stop) for t in terms])
    return (_words(sample.only(outside), ()) if outside.any() else None) or _small_or_elsewhere(sample)


def _small_or_elsewhere(sample: _Sample) -> str:
    """Words for a tensor in whose sampled rows nothing is wrong that several roundings do not explain."""
    right = judge.is_right(sample.subject, sample.stored, sample.expected, sample.chance)
    return "values outside the sample are wrong" if right.all() else "values were rounded more than once"


def _words(sample: _Sample, terms: tuple[Term, ...]) -> str | None:
    """What is wrong with these rows; None when nothing is."""
    expected, change, update = sample.expected, sample.change, sample.update
    right = sample.right()
    n_wrong = int(np.count_nonzero(~right))
    if n_wrong == 0:
        return None
    applied = _projection(change, update)
    if applied is None:
        return f"the adapter changes nothing here, but {n_wrong} of {right.size} looked-at values differ"
    if np.isnan(sample.stored).any() and not np.isnan(expected.exact).any():
        return "there are NaNs that base + adapter does not give"
    known = _known_mistake(sample, terms)
    if known is not None:
        return known
    if n_wrong < FEW * right.size:
        return f"{n_wrong} of {right.size} looked-at values are wrong, the others right"
    if sample.fits(expected.source + applied * update):
        return f"the update is {applied:.3g} times what it should be: another scale?"
    cosine = applied * _norm(update) / _norm(change)
    if cosine < UNRELATED:
        return "another update than this adapter's"
    return f"{n_wrong} of {right.size} looked-at values are farther off than rounding explains"


def _known_mistake(sample: _Sample, terms: tuple[Term, ...]) -> str | None:
    """The hypothesis that most values are exactly a rounding of, among those that explain nearly all.

    The projection does not decide: of an update smaller than an ulp, rounding leaves an uncertain share.
    """
    best, words = 0.0, None
    for share, said in _hypotheses(terms):
        exact = sample.expected.source + share * sample.update
        exactly = sample.share(exact) if sample.fits(exact) else 0.0
        if exactly > best:
            best, words = exactly, said
    several = float(np.mean(~sample.right())) >= FEW
    for exactly, said in _other_roundings(sample) if several else ():
        if exactly >= NEARLY_ALL and exactly > best:
            best, words = exactly, said
    return words


def _other_roundings(sample: _Sample) -> Iterator[tuple[float, str]]:
    """The shares of values that other roundings of the right sum would give."""
    e, fmt = sample.expected, FORMATS[sample.subject.found.dtype]
    nearest = float(np.mean(agrees(sample.stored, e.exact, e.error, fmt)))
    either = float(np.mean(is_neighbour(sample.stored, e.exact, e.error, fmt)))
    if sample.chance is not None:
        yield nearest, "the values were rounded to nearest, not at random"
        yield either, "the values were rounded at random, but by other bits: another seed?"
    else:
        yield either, "the values were rounded up and down at random: with which --rounding and --seed?"


def _norm(x: Floats) -> float:
    return math.sqrt(float(np.square(x[np.isfinite(x)]).sum()))


def _hypotheses(terms: Iterable[Term]) -> Iterator[tuple[float, str]]:
    """Shares of the update that usual mistakes leave in the file; where two give the same share, the first is said."""
    yield 0.0, "the update is missing: this tensor is the base's"
    yield 2.0, "the update is in here twice"
    yield -1.0, "the update was subtracted"
    for term in terms:
        root = math.sqrt(term.rank) if term.rank > 0 else 1.0
        if root != 1.0:
            yield root, f"the update is {root:.3g} times too large: alpha/sqrt(r) against alpha/r?"
            yield 1 / root, f"the update is {root:.3g} times too small: alpha/r against alpha/sqrt(r)?"
        if term.scale not in (0.0, 1.0):
            yield 1 / term.scale, f"the scale {term.scale:.3g} is missing from the update"
