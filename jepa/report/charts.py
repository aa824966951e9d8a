"""Line charts and scatters as numbers that a template draws as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 280, 170
LEFT, RIGHT, TOP, BOTTOM = 42, 14, 8, 22
MOST_POINTS = 160  # of a line: longer ones are averaged
COLOURS = 10  # that the page's style has: c0 to c9

Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A tick, a dot, or a column that answers to the pointer: a place, and what it says."""

    x: float
    y: float
    text: str = ""
    style: str = ""
    width: float = 0.0


@dataclass(frozen=True)
class Line:
    """One series: the `d` of an SVG path, how it is drawn, and its line in the legend."""

    name: str
    style: str
    path: str
    last: str = ""


@dataclass(frozen=True)
class Chart:
    """All that the template needs, in units of the view box."""

    title: str
    note: str
    width: int = WIDTH
    height: int = HEIGHT
    lines: Sequence[Line] = ()
    dots: Sequence[Mark] = ()
    x_ticks: Sequence[Mark] = ()
    y_ticks: Sequence[Mark] = ()
    columns: Sequence[Mark] = ()
    legend: Sequence[Line] = field(default=())


def line_chart(title: str, series: Mapping[str, Sequence[Point]], note: str = "", x_name: str = "step") -> Chart:
    """A chart of named series of (x, y). Points that are not finite leave a gap; names with "chance" are dashed."""
    short = {name: _averaged([p for p in points if isfinite(p[0])]) for name, points in series.items()}
    finite = [p for points in short.values() for p in points if isfinite(p[1])]
    if not finite:
        return Chart(title, f"{note} Nothing finite was measured.".strip())
    x_low, x_high = _range([x for x, _ in finite], 0.0)
    y_low, y_high = _range([y for _, y in finite], 0.06)

    def place(point: Point) -> Point:
        return (
            LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM),
        )

    lines, dots = [], []
    for number, (name, points) in enumerate(short.items()):
        style = f"c{number % COLOURS}{' dashed' if 'chance' in name else ''}"
        placed = [place(p) if isfinite(p[1]) else None for p in points]
        lines.append(Line(name, style, _path(placed), number_text(points[-1][1]) if points else ""))
        if len(points) == 1 and placed[0]:
            dots.append(Mark(*placed[0], style=style))
    at: dict[float, list[str]] = {}
    for name, points in short.items():
        for x, y in points:
            at.setdefault(x, []).append(f"{name} {number_text(y)}")
    middles = [place((x, y_low))[0] for x in sorted(at)]
    edges = [LEFT, *(sum(pair) / 2 for pair in pairwise(middles)), WIDTH - RIGHT]
    columns = [
        Mark(left, TOP, f"{x_name} {x:,.0f}: " + ", ".join(at[x]), width=right - left)
        for x, (left, right) in zip(sorted(at), pairwise(edges), strict=True)
    ]
    return Chart(
        title,
        note,
        lines=lines,
        dots=dots,
        x_ticks=[Mark(place((x, y_low))[0], HEIGHT - 7, number_text(x)) for x in ticks(x_low, x_high, 5)],
        y_ticks=[Mark(LEFT - 5, place((x_low, y))[1], number_text(y)) for y in ticks(y_low, y_high, 5)],
        columns=columns,
        legend=lines,
    )


def scatter(
    title: str, points: Sequence[Point], texts: Sequence[str], styles: Sequence[str], legend: Mapping[str, str]
) -> Chart:
    """Points in the plane with what they say and their style; the axes mean nothing and are not drawn.

    Args:
        legend: style by name.
    """
    (x_low, x_high), (y_low, y_high) = (_range([p[axis] for p in points], 0.03) for axis in (0, 1))
    side, edge = WIDTH, 6
    dots = [
        Mark(
            edge + (x - x_low) / (x_high - x_low) * (side - 2 * edge),
            edge + (y_high - y) / (y_high - y_low) * (side - 2 * edge),
            text,
            style,
        )
        for (x, y), text, style in zip(points, texts, styles, strict=True)
    ]
    return Chart(title, "", height=side, dots=dots, legend=[Line(name, style, "") for name, style in legend.items()])


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers between the two, evenly spaced."""
    raw = (high - low) / most
    power = 10 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= raw)
    first = ceil(low / step - 1e-9)
    found = [round((first + i) * step, 12) for i in range(most + 1)]
    return [tick for tick in found if tick <= high + 1e-9 * step]


def number_text(value: float) -> str:
    """A number short enough for an axis: 1500 -> 1.5k, 0.00021 -> 2.1e-4."""
    size = abs(value)
    if not isfinite(value) or size == 0:
        return f"{value:g}"
    for bound, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= bound:
            scale = 1e3 if unit == "k" else bound
            return f"{value / scale:.4g}{unit}"
    if size >= 1e-3:
        return f"{value:.5g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _averaged(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS of them: means of as many neighbours as needed, the last point among them."""
    size = ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[max(0, end - size) : end] for end in range(len(points), 0, -size)][::-1]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(high) * 0.1 or 1.0
        return low - pad, high + pad
    return low - margin * (high - low), high + margin * (high - low)


def _path(points: Sequence[Point | None]) -> str:
    """The `d` of an SVG path; it starts anew after a gap."""
    parts, pen_up = [], True
    for point in points:
        if point is not None:
            parts.append(f"{'M' if pen_up else 'L'}{point[0]:.1f} {point[1]:.1f}")
        pen_up = point is None
    return "".join(parts)
