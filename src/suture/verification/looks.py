"""Which rows and bytes of a tensor are looked at: all of them, or a sample drawn from the tensor's name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from suture.values import Operation, Term
from suture.verification.expect import blocks
from suture.verification.reading import PIECE_BYTES

LOOK_VALUES = 1 << 13  # values of one look at a sampled tensor
LOOK_BYTES = 1 << 16  # bytes of one look at a copied tensor
EDGE_BYTES = 1 << 12
MAX_TERMS = 8  # of fused experts, that many are drawn


def rows(operation: Operation, *, full: bool) -> tuple[slice, ...]:
    """Row ranges to recompute, in order: every term is looked at, and the first and last rows of the tensor."""
    if full:
        return tuple(blocks(0, operation.rows, operation.cols))
    n_rows = operation.rows
    size = max(1, min(64, LOOK_VALUES // max(operation.cols, 1)))
    found = [slice(0, size), slice(max(n_rows - size, 0), n_rows)]
    for number in _terms(operation):
        found += _of_term(operation.tensor, number, operation.terms[number], size)
    if not operation.terms:
        at = draw(operation.tensor, 0, n_rows)
        found.append(slice(at, at + size))
    return _disjoint(found, n_rows)


def _terms(operation: Operation) -> Iterable[int]:
    """Numbers of the terms to look at: all, or MAX_TERMS of the many experts of a fused tensor."""
    n_terms = len(operation.terms)
    if n_terms <= MAX_TERMS:
        return range(n_terms)
    return sorted({draw(operation.tensor, k, n_terms) for k in range(MAX_TERMS)})


def _of_term(name: str, number: int, term: Term, size: int) -> Iterable[slice]:
    at = term.start + draw(f"{name}/{number}", 0, term.stop - term.start)
    yield slice(at, min(at + size, term.stop))
    changed = term.rows_changed
    for k in sorted({0, len(changed) - 1, draw(name, number, len(changed))}) if changed else ():
        yield slice(term.start + changed[k], term.start + changed[k] + 1)


def pieces(name: str, n_bytes: int, *, full: bool) -> tuple[slice, ...]:
    """Byte ranges of a copied tensor to compare."""
    if full:
        return tuple(slice(at, min(at + PIECE_BYTES, n_bytes)) for at in range(0, n_bytes, PIECE_BYTES))
    found = [slice(0, EDGE_BYTES), slice(max(n_bytes - EDGE_BYTES, 0), n_bytes)]
    found += [slice(at, at + LOOK_BYTES) for at in (draw(name, k, n_bytes) for k in range(2))]
    return _disjoint(found, n_bytes)


def draw(name: str, number: int, stop: int) -> int:
    """A number below `stop` that depends on the name alone, so that a second look sees the same place."""
    digest = hashlib.sha256(f"{name}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % max(stop, 1)


def _disjoint(found: Iterable[slice], stop: int) -> tuple[slice, ...]:
    """The same positions in order, none twice."""
    result: list[slice] = []
    at = 0
    for piece in sorted(found, key=lambda s: (s.start, s.stop)):
        first, last = max(piece.start, at), min(piece.stop, stop)
        if first < last:
            result.append(slice(first, last))
            at = last
    return tuple(result)
