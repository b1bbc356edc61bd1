"""Pure algebra of names: how the tensors of a checkpoint, by way of the loader's conversions, make up parameters.

A conversion is followed on blocks (boxes of a tensor that fill boxes of a value) instead of on numbers, and what
comes out is written as `Part`s: `tensor[rows] == param[index]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from suture.values import Part

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a conversion. `text` is how it is called in messages; "other" is any that Parts cannot follow.

    `dims` holds one axis, or the two that a transpose swaps. A transpose that is `checked` happens only when the shape
    is not the parameter's yet.
    """

    op: Literal["stack", "concatenate", "chunk", "split", "transpose", "other"]
    dims: tuple[int, ...]
    text: str
    checked: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """Tensors of the checkpoint that go together, the steps they go through, and the parameters that come out.

    `sources` lists tensors by the pattern they matched, in the loader's order; `patterns` is the order in which a
    concatenation takes them. A plain renaming has one source, one target and no steps.
    """

    sources: Mapping[str, tuple[str, ...]]
    patterns: tuple[str, ...]
    steps: tuple[Step, ...]
    targets: tuple[str, ...]


class NotExpressible(Exception):
    """The conversion cannot be written as Parts; the message says why."""


@dataclass(frozen=True, slots=True)
class _Span:
    """One axis of a block: `start:stop` of the value, from `axis` of the tensor at `offset` (no axis: stacked)."""

    start: int
    stop: int
    axis: int | None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class _Block:
    tensor: str
    spans: tuple[_Span, ...]


@dataclass(frozen=True, slots=True)
class _Value:
    shape: Shape
    blocks: tuple[_Block, ...]


def follow(route: Route, shapes: Shapes, params: Shapes) -> tuple[Part, ...]:
    """The Parts of a route.

    Args:
        shapes: of the checkpoint's tensors.
        params: of the model's parameters.

    Raises:
        NotExpressible: a step, or its result, has no Part that says it exactly.
    """
    if not route.steps:
        return tuple(Part(name, route.targets[0]) for names in route.sources.values() for name in names)
    values = {pattern: [_whole(n, shapes[n]) for n in names] for pattern, names in route.sources.items()}
    for step in route.steps:
        values = _apply(step, values, route, params)
    parts: list[Part] = []
    for target in route.targets:
        parts += _parts(_result(values, target), target, shapes, params)
    return tuple(parts)


def _whole(tensor: str, shape: Shape) -> _Value:
    return _Value(shape, (_Block(tensor, tuple(_Span(0, n, axis) for axis, n in enumerate(shape))),))


def _result(values: Mapping[str, list[_Value]], target: str) -> _Value:
    if len(values.get(target, ())) != 1:
        raise NotExpressible(f"the conversion does not give {target}")
    return values[target][0]


def _apply(step: Step, values: dict[str, list[_Value]], route: Route, params: Shapes) -> dict[str, list[_Value]]:
    """One step on all values, by pattern: the loader renames from source patterns to targets as it goes along."""
    if step.op == "stack":
        name = route.targets[0] if len(values) == 1 else None
        return {name or pattern: [_stack(items, step)] for pattern, items in values.items()}
    if step.op == "concatenate":
        return {route.targets[0]: [_concatenate([v for p in route.patterns for v in values.get(p, ())], step)]}
    if step.op == "other":
        raise NotExpressible(step.text)
    (name, items), *rest = values.items()
    if rest or len(items) != 1:
        raise NotExpressible(f"{step.text} of several tensors")
    if step.op == "transpose":
        key = route.targets[0] if len(route.targets) == 1 else name
        return {key: [_transpose(items[0], step, params.get(route.targets[0]))]}
    return _cut_into(items[0], step, route.targets, params)


def _axis(step: Step, at: int, ndim: int) -> int:
    dim = step.dims[at]
    if not -ndim <= dim < ndim:
        raise NotExpressible(f"{step.text} of a tensor with {ndim} axes")
    return dim % ndim


def _stack(items: Sequence[_Value], step: Step) -> _Value:
    shape = items[0].shape
    if any(v.shape != shape for v in items):
        raise NotExpressible(f"{step.text} of tensors of different shapes")
    dim = _axis(step, 0, len(shape) + 1)
    blocks = [
        replace(b, spans=(*b.spans[:dim], _Span(i, i + 1, None), *b.spans[dim:]))
        for i, value in enumerate(items)
        for b in value.blocks
    ]
    return _Value((*shape[:dim], len(items), *shape[dim:]), tuple(blocks))


def _concatenate(items: Sequence[_Value], step: Step) -> _Value:
    shape = items[0].shape
    dim = _axis(step, 0, len(shape))
    if any(v.shape[:dim] + v.shape[dim + 1 :] != shape[:dim] + shape[dim + 1 :] for v in items):
        raise NotExpressible(f"{step.text} of tensors whose shapes do not fit")
    blocks: list[_Block] = []
    length = 0
    for value in items:
        blocks += [_with_span(b, dim, _moved(b.spans[dim], length)) for b in value.blocks]
        length += value.shape[dim]
    return _Value((*shape[:dim], length, *shape[dim + 1 :]), tuple(blocks))


def _cut_into(value: _Value, step: Step, targets: Sequence[str], params: Shapes) -> dict[str, list[_Value]]:
    """A chunk has pieces of equal length (the last may be shorter), a split those of its parameters."""
    dim = _axis(step, 0, len(value.shape))
    length = value.shape[dim]
    if step.op == "split":
        sizes = [params[t][dim] for t in targets]
    else:
        size = math.ceil(length / len(targets))
        sizes = [max(0, min(size, length - i * size)) for i in range(len(targets))]
    if sum(sizes) != length or 0 in sizes:
        raise NotExpressible(f"{step.text} of {length} rows into pieces of {sizes}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return {t: [_slice(value, dim, a, a + n)] for t, a, n in zip(targets, starts, sizes, strict=True)}


def _slice(value: _Value, dim: int, start: int, stop: int) -> _Value:
    blocks: list[_Block] = []
    for block in value.blocks:
        span = block.spans[dim]
        low, high = max(span.start, start), min(span.stop, stop)
        if low < high:
            cut = _Span(low - start, high - start, span.axis, span.offset + low - span.start)
            blocks.append(_with_span(block, dim, cut))
    return _Value((*value.shape[:dim], stop - start, *value.shape[dim + 1 :]), tuple(blocks))


def _transpose(value: _Value, step: Step, wanted: Shape | None) -> _Value:
    if step.checked and value.shape == wanted:
        return value
    ndim = len(value.shape)
    a, b = _axis(step, 0, ndim), _axis(step, 1, ndim)
    order = list(range(ndim))
    order[a], order[b] = b, a
    blocks = [replace(block, spans=tuple(block.spans[i] for i in order)) for block in value.blocks]
    return _Value(tuple(value.shape[i] for i in order), tuple(blocks))


def _with_span(block: _Block, dim: int, span: _Span) -> _Block:
    return replace(block, spans=(*block.spans[:dim], span, *block.spans[dim + 1 :]))


def _moved(span: _Span, by: int) -> _Span:
    return replace(span, start=span.start + by, stop=span.stop + by)


def _parts(value: _Value, param: str, shapes: Shapes, params: Shapes) -> list[Part]:
    if param not in params:
        raise NotExpressible(f"the model class has no {param}")
    if value.shape != params[param]:
        raise NotExpressible(f"gives {param} the shape {list(value.shape)} instead of {list(params[param])}")
    return [_part(block, param, shapes[block.tensor], value.shape) for block in value.blocks]


def _part(block: _Block, param: str, source: Shape, shape: Shape) -> Part:
    """A block as a Part: rows may be cut from the tensor, nothing else; at most its last two axes are swapped."""
    free = [s for s in block.spans if s.axis is not None]
    order = [s.axis for s in free]
    straight = list(range(len(source)))
    swapped = [*straight[:-2], *straight[:-3:-1]]
    if order not in (straight, swapped):
        raise NotExpressible(f"axes of {block.tensor} change places: {order}")
    lengths = {s.axis: (s.offset, s.offset + s.stop - s.start) for s in free}
    if any(lengths[axis] != (0, source[axis]) for axis in straight[1:]):
        raise NotExpressible(f"{block.tensor} is cut along an axis that is not its first")
    rows = lengths.get(0)
    index: list[int | tuple[int, int]] = [s.start if s.axis is None else (s.start, s.stop) for s in block.spans]
    while index and index[-1] == (0, shape[len(index) - 1]):
        index.pop()
    return Part(
        block.tensor,
        param,
        tuple(index),
        transpose=order != straight,
        rows=None if rows in (None, (0, source[0] if source else 0)) else rows,
    )
