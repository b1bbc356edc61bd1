"""Loss curves as text and as SVG."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suture.training.curve import MARK, number, plot, svg, thinned

SVG = "{http://www.w3.org/2000/svg}"
FALLING = [(step, 10.0 / step) for step in range(1, 60)]
EDGES = "│"
VALUES = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e308, -1e308, 5e-324])
SERIES = st.lists(st.tuples(st.integers(0, 10**7), VALUES), max_size=12).map(
    lambda points: sorted(points, key=lambda p: p[0])
)


def dots_of(lines):
    """Dots by column, counted from the top: decoded by the Unicode standard's numbering of braille dots."""
    order = ((0, 1, 2, 6), (3, 4, 5, 7))
    found: dict[int, list[int]] = {}
    for row, line in enumerate(lines[:-1]):
        for cell, char in enumerate(line.partition(EDGES)[2]):
            bits = ord(char) - 0x2800
            if not 0 < bits < 256:
                continue
            for half, numbers in enumerate(order):
                for y, bit in enumerate(numbers):
                    if bits >> bit & 1:
                        found.setdefault(2 * cell + half, []).append(4 * row + y)
    return found


def test_falling_values_give_falling_dots_without_gaps():
    dots = dots_of(plot(FALLING, width=40, height=9))
    columns = sorted(dots)
    assert columns == list(range(len(columns)))
    assert len(columns) == 2 * (40 - len("10.00 │"))
    for here, there in itertools.pairwise(columns):
        assert max(dots[here]) <= min(dots[there]) + 1
        assert min(dots[here]) <= min(dots[there])
        assert max(dots[there]) - max(dots[here]) <= len(dots[there])  # a line, not points
    assert (min(dots[0]), max(dots[columns[-1]])) == (0, 31)


def test_the_extremes_stand_at_their_labels():
    lines = plot([(1, 2.0), (2, 8.0), (3, 0.5)], width=30, height=6)
    assert lines[0].startswith("8.00 │")
    assert lines[4].startswith("0.50 │")
    dots = dots_of(lines)
    assert min(y for ys in dots.values() for y in ys) == 0
    assert max(y for ys in dots.values() for y in ys) == 19
    assert 0 in dots[len(range(24))]  # the middle of the frame, where the highest value lies
    assert lines[5] == "      step 1" + " " * 17 + "3"


def test_many_points_in_one_column_keep_their_range():
    noisy = [(step, float(step % 2)) for step in range(4000)]
    assert all(len(ys) == 16 for ys in dots_of(plot(noisy, width=20, height=5)).values())


def test_the_second_series_has_its_own_mark():
    lines = plot([(0, 1.0), (10, 0.0)], width=31, height=5, second=[(0, 0.0), (10, 1.0), (5, math.nan)])
    assert lines[0].endswith(MARK)
    assert lines[3].partition(EDGES)[2][0] == MARK
    assert sum(line.count(MARK) for line in lines[:-1]) == 2
    assert "eval" not in lines[4]  # no room for it beside the count
    wide = plot([(0, 1.0), (10, 0.0)], width=60, height=5, second=[(0, 0.0), (5, math.nan)])
    assert f"{MARK} eval   1 not finite" in wide[4]


def test_values_that_are_not_finite_leave_a_gap():
    points = [(step, math.nan if 40 <= step < 60 else 1.0 * step) for step in range(100)]
    dots = dots_of(plot([*points, (100, math.inf)], width=56, height=5))
    assert set(range(2 * 20)) <= dots.keys()
    assert not set(range(2 * 20 + 2, 2 * 29)) & dots.keys()
    assert "21 not finite" in plot([*points, (100, math.inf)], width=56, height=5)[-1]


def test_few_points():
    assert plot([], width=40, height=4) == ["no finite values yet", "", "", ""]
    assert plot([(1, math.nan)], width=40, height=2) == ["no finite values yet", ""]
    one = plot([(7, 2.5)], width=40, height=4)
    assert one[1].startswith("2.5 │")
    assert sum(len(ys) for ys in dots_of(one).values()) == 1
    assert one[3] == "     step 7"


@given(SERIES, SERIES, st.integers(1, 50), st.integers(1, 10))
def test_never_wider_or_higher_than_asked(points, second, width, height):
    lines = plot(points, width=width, height=height, second=second)
    assert len(lines) == max(height, 2)
    assert all(len(line) <= width and line.isprintable() for line in lines)
    root = ET.fromstring(svg(points, second, title="x"))
    assert "nan" not in ET.tostring(root, "unicode")
    assert "inf" not in ET.tostring(root, "unicode")


@pytest.mark.parametrize(
    ("value", "span", "text"),
    [
        (2.3456, 1.9, "2.35"),
        (2.3456, 0.019, "2.3456"),
        (2.3456, 19.0, "2.3"),
        (2345.6, 900.0, "2346"),
        (2.3456, 0.0, "2.346"),
        (1.5e9, 1e9, "1.5e+09"),
        (3e-6, 2e-6, "3e-06"),
        (0.0, 0.0, "0"),
    ],
)
def test_digits(value, span, text):
    assert number(value, span) == text


def test_the_picture_holds_every_point():
    second = [(10, 4.0), (50, 1.0)]
    root = ET.fromstring(svg(FALLING, second, title="A & <b>\x1b"))
    assert root.find(f"{SVG}text").text == "A & <b>\ufffd"
    line, other = root.findall(f"{SVG}polyline")
    at = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    assert len(at) == len(FALLING)
    assert [x for x, _ in at] == sorted({x for x, _ in at})
    assert [y for _, y in at] == sorted(y for _, y in at)  # down the picture
    assert len(other.get("points").split()) == 2
    assert len([c for c in root.findall(f"{SVG}circle") if c.get("r") == "3"]) == 2
    _, _, width, height = map(float, root.get("viewBox").split())
    assert all(0 < x < width and 0 < y < height for x, y in at)
    assert {node.tag.removeprefix(SVG) for node in root.iter()} == {"svg", "text", "line", "polyline", "circle"}


def test_the_picture_s_axis_tells_the_values():
    root = ET.fromstring(svg([(0, 0.0), (100, 4.0)], [], title="x"))
    (line,) = root.findall(f"{SVG}polyline")
    bottom, top = (float(pair.split(",")[1]) for pair in line.get("points").split())
    labels = {t.text: float(t.get("y")) - 4 for t in root.findall(f"{SVG}text") if t.get("text-anchor") == "end"}
    assert labels == {f"{v}.00": pytest.approx(bottom + (top - bottom) * v / 4, abs=0.11) for v in range(5)}
    steps = [t.text for t in root.findall(f"{SVG}text") if t.get("text-anchor") == "middle"]
    assert steps == ["0", "20", "40", "60", "80", "100"]


def test_a_picture_with_gaps():
    values = [(1, 1.0), (2, math.nan), (3, 2.0), (4, 3.0), (5, math.inf)]
    root = ET.fromstring(svg(values, [], title="x"))
    assert [len(p.get("points").split()) for p in root.findall(f"{SVG}polyline")] == [1, 2]
    assert len(root.findall(f"{SVG}circle")) == 1  # a line of one point would not be seen
    assert "2 values are not finite" in ET.tostring(root, "unicode")
    assert "no finite values" in svg([], [], title="x")


def test_thinning_keeps_peaks_and_order():
    points = [(step, 1.0) for step in range(1000)]
    points[333], points[666] = (333, 9.0), (666, -9.0)
    few = thinned(points, 100)
    assert len(few) <= 100
    assert {(333, 9.0), (666, -9.0)} <= set(few)
    assert few == sorted(few, key=lambda p: p[0])
    assert thinned(points[:100], 100) == points[:100]
    assert all(math.isnan(value) for _, value in thinned([(step, math.nan) for step in range(9)], 4))
