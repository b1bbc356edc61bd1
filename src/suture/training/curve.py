"""A loss curve as text, in braille dots, and as a small SVG picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

Points: TypeAlias = Sequence[tuple[int, float]]

BRAILLE, DOTS = 0x2800, ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column, then row of a cell
MARK = "◆"
MIN_COLUMNS = 4

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 320, 64, 24, 48, 272
LINE, SECOND, GREY = "#2a7f62", "#c5392f", "#7a7f85"  # all of them readable on white and on black


@dataclass(frozen=True, slots=True)
class _Frame:
    """The range of the values that are shown; a range of one value gets the middle."""

    first: int
    last: int
    low: float
    high: float

    def across(self, step: float, size: float) -> float:
        """Where a step lies on an axis of that length."""
        return size * ((step - self.first) / (self.last - self.first) if self.last > self.first else 0.5)

    def down(self, value: float, size: float) -> float:
        """How far below the top a value lies."""
        # halves keep the difference of huge values finite
        span = self.high / 2 - self.low / 2
        return size * ((self.high / 2 - value / 2) / span if span > 0 else 0.5)


def thinned(points: Points, limit: int) -> list[tuple[int, float]]:
    """At most `limit` points (4 at least): the highest and the lowest of every group of neighbours, so peaks stay."""
    found = list(points)
    while len(found) > max(limit, 4):
        groups = (found[i : i + 4] for i in range(0, len(found), 4))
        found = [p for g in groups for p in sorted({min(g, key=_by_value), max(g, key=_by_value)}, key=lambda p: p[0])]
    return found


def _by_value(point: tuple[int, float]) -> float:
    return point[1] if math.isfinite(point[1]) else math.inf


def plot(points: Points, *, width: int, height: int, second: Points = ()) -> list[str]:
    """A curve in braille dots, two by four a character, with the range of the values and of the steps beside it.

    Args:
        points: step and value, in the order of the steps; values that are not finite leave a gap and are counted.
        width: columns, never exceeded.
        height: lines, of which the last one tells the steps; 2 at least.
        second: another series in the same frame, drawn as single marks.

    Returns:
        `height` lines.
    """
    n_lines = max(height, 2)
    frame = _frame(points, second)
    if frame is None:
        return [text[:width].rstrip() for text in ("no finite values yet", *[""] * (n_lines - 1))]
    low, high = (number(v, frame.high - frame.low) for v in (frame.low, frame.high))
    gutter = max(len(low), len(high)) + 2
    gutter = gutter if width - gutter >= MIN_COLUMNS else 0
    rows = _drawn(points, second, frame, (max(width - gutter, 1), n_lines - 1))
    labels = [""] * len(rows)
    labels[0], labels[-1] = (high, low) if frame.high > frame.low else ("", "")
    if frame.high == frame.low:
        labels[len(rows) // 2] = high
    lines = [f"{label:>{gutter - 2}} │{row}" if gutter else row for label, row in zip(labels, rows, strict=True)]
    return [line.rstrip()[:width] for line in (*lines, _steps(points, second, frame, gutter, width))]


def _frame(points: Points, second: Points) -> _Frame | None:
    both = [*points, *second]
    values = [value for _, value in both if math.isfinite(value)]
    steps = [step for step, _ in both]
    return _Frame(min(steps), max(steps), min(values), max(values)) if values else None


def _steps(points: Points, second: Points, frame: _Frame, gutter: int, width: int) -> str:
    """The last line: first and last step, and between them what the marks are and what could not be drawn."""
    n_missing = sum(not math.isfinite(value) for _, value in (*points, *second))
    first, last = f"step {frame.first:,}", f"{frame.last:,}" if frame.last > frame.first else ""
    notes = [f"{MARK} eval"] if second else []
    notes += [f"{n_missing:,} not finite"] if n_missing else []
    room = max(width - gutter, 1)
    middle = "   ".join(notes)
    if len(first) + len(middle) + len(last) + 4 > room:
        middle = ""
    if len(first) + len(last) + 1 > room:
        first = f"{frame.first:,}"
    gap = room - len(first) - len(last)
    return " " * gutter + first + (middle.center(gap) if gap > 0 else " ") + last


def _drawn(points: Points, second: Points, frame: _Frame, cells: tuple[int, int]) -> list[str]:
    """The rows of characters: the curve as a line of dots, the marks over it."""
    n_columns, n_rows = cells
    grid = [[0] * n_columns for _ in range(n_rows)]
    for x, top, bottom in _strokes(points, frame, 2 * n_columns - 1, 4 * n_rows - 1):
        for y in range(top, bottom + 1):
            grid[y // 4][x // 2] |= DOTS[x % 2][y % 4]
    rows = [[chr(BRAILLE + dots) if dots else " " for dots in row] for row in grid]
    for step, value in second:
        if math.isfinite(value):
            x = round(frame.across(step, 2 * n_columns - 1))
            rows[round(frame.down(value, 4 * n_rows - 1)) // 4][x // 2] = MARK
    return ["".join(row) for row in rows]


def _strokes(points: Points, frame: _Frame, last_x: int, last_y: int) -> Iterator[tuple[int, int, int]]:
    """Vertical strokes (x, top, bottom) of dots that join neighbouring points; no joint across a gap."""
    before: tuple[int, int] | None = None
    for step, value in points:
        if not math.isfinite(value):
            before = None
            continue
        x, y = round(frame.across(step, last_x)), round(frame.down(value, last_y))
        if before is None or x <= before[0]:
            start = y if before is None else before[1]
            yield x, min(start, y), max(start, y)
        else:
            yield from _joint(before, (x, y))
        before = x, y


def _joint(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """Strokes from after `start` to `end`, each of them reaching to the one before."""
    (x0, y0), (x1, y1) = start, end
    y = y0
    for x in range(x0 + 1, x1 + 1):
        now = round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
        joined = now if now == y else y + (1 if now > y else -1)
        yield x, min(joined, now), max(joined, now)
        y = now


def number(value: float, span: float) -> str:
    """A value with as many digits as tell differences of a hundredth of the span; 4 digits where there is no span."""
    size = max(abs(value), span)
    if size >= 1e6 or 0 < size < 1e-4:
        return f"{value:.3g}"
    if span <= 0:
        return f"{value:.4g}"
    return f"{value:.{min(max(2 - math.floor(math.log10(span)), 0), 8)}f}"


def svg(points: Points, second: Points, *, title: str) -> str:
    """A standalone SVG picture of a curve, on no background, in colours for light and dark pages.

    Args:
        points: step and value; one point of a line for each finite value, interrupted where one is not finite.
        second: another series, drawn with a circle at each value.
        title: any text; characters that XML forbids are replaced.
    """
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{GREY}">',
        f'<text x="{LEFT}" y="28" font-size="17" font-weight="bold">{_text(title)}</text>',
    ]
    frame = _frame(points, second)
    if frame is None:
        return "\n".join([*lines, f'<text x="{LEFT}" y="{TOP + 24}">no finite values</text>', "</svg>\n"])
    lines += [*_axes(frame), *_line(points, frame, LINE, 0), *_line(second, frame, SECOND, 3)]
    n_missing = sum(not math.isfinite(value) for _, value in (*points, *second))
    words = "loss by step" + (f"; {n_missing:,} values are not finite" if n_missing else "")
    lines.append(f'<text x="{LEFT}" y="{HEIGHT - 10}">{words}</text>')
    if second:
        lines.append(
            f'<circle cx="{WIDTH - 78}" cy="24" r="4" fill="{SECOND}"/><text x="{WIDTH - 68}" y="28">eval</text>'
        )
    return "\n".join([*lines, "</svg>\n"])


def _axes(frame: _Frame) -> Iterator[str]:
    stroke = f'stroke="{GREY}" stroke-opacity="0.25"'
    for value in _ticks(frame.low, frame.high):
        y = TOP + frame.down(value, BOTTOM - TOP)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" {stroke}/>'
        text = number(value, frame.high - frame.low)
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    for step in sorted({round(step) for step in _ticks(frame.first, frame.last)}):
        x = LEFT + frame.across(step, WIDTH - LEFT - RIGHT)
        yield f'<text x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{step:,}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers from low to high; one where they are equal."""
    span = high - low
    if not 0 < span / 4 < math.inf:  # a quarter of the smallest number is zero
        return [low] if low == high else [low, high]
    power = 10.0 ** math.floor(math.log10(span / 4))
    unit = next((k * power for k in (5, 2) if k * power <= span / 4), power)
    if unit == 0 or low + unit == low:
        return [low, high]
    return [n * unit for n in range(math.ceil(low / unit), math.floor(high / unit) + 1)]


def _line(points: Points, frame: _Frame, colour: str, radius: int) -> Iterator[str]:
    for run in _runs(points):
        at = [
            (LEFT + frame.across(step, WIDTH - LEFT - RIGHT), TOP + frame.down(value, BOTTOM - TOP))
            for step, value in run
        ]
        pairs = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        yield f'<polyline points="{pairs}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-linejoin="round"/>'
        for x, y in at if radius else at[: len(at) == 1]:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius or 2}" fill="{colour}"/>'


def _runs(points: Iterable[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    """Points between gaps."""
    runs: list[list[tuple[int, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _text(text: str) -> str:
    return escape("".join(c if c.isprintable() else "\ufffd" for c in text))
