"""Line charts as inline SVG. Colours are CSS classes, so a page decides light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 14, 36

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points ``(x, y)`` in data units; ``colour`` is a CSS class; ``band`` holds ``(low, high)`` for each point;
    ``planned`` draws it broad and pale, to lie under what happened."""

    name: str
    colour: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float]] | None = None
    planned: bool = False


@dataclass(frozen=True)
class Frame:
    """Data ranges of the two axes, and their map to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> Point:
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def chart(title: str, y_name: str, lines: list[Line], y_range: tuple[float, float] | None = None) -> str:
    """One chart with x = training step. Lines without points are left out; none at all gives a sentence.

    Args:
        y_range: fixed range; None spans 0 to a round number above the largest value.
    """
    drawn = [line for line in lines if line.points]
    caption = f"<figcaption>{html.escape(title)}</figcaption>"
    if not drawn:
        return f"<figure>{caption}<p class='note'>The run logged no values for this chart.</p></figure>"
    steps = [x for line in drawn for x, _ in line.points]
    frame = Frame((0.0, max(*steps, 1.0)), y_range or _range(drawn))
    body = [_grid(frame, y_name), *(_band(frame, line) for line in drawn), *(_path(frame, line) for line in drawn)]
    legend = "".join(f"<span class='{line.colour}'><i></i>{html.escape(line.name)}</span>" for line in drawn)
    label = html.escape(f"{title}: {y_name} by training step", quote=True)
    svg = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{label}'>{''.join(body)}</svg>"
    return f"<figure>{caption}{svg}<div class='legend'>{legend}</div></figure>"


def _range(lines: list[Line]) -> tuple[float, float]:
    values = [y for line in lines for _, y in line.points]
    step = nice_step(max(values) - min(0.0, *values))
    return min(0.0, math.floor(min(values) / step) * step), max(step, math.ceil(max(values) / step) * step)


def nice_step(span: float, ticks: int = 4) -> float:
    """The smallest of 1, 2, 5 times a power of ten that covers ``span`` in at most ``ticks`` + 1 steps."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / ticks))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * (ticks + 1) >= span)


def _ticks(low: float, high: float, step: float) -> list[float]:
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _grid(frame: Frame, y_name: str) -> str:
    parts = []
    for value in _ticks(*frame.y, nice_step(frame.y[1] - frame.y[0])):
        _, y = frame.at(frame.x[0], value)
        parts.append(f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{value:g}</text>")
    for value in _ticks(*frame.x, max(1.0, nice_step(frame.x[1] - frame.x[0], 6))):
        x, _ = frame.at(value, frame.y[0])
        parts.append(f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 16}' text-anchor='middle'>{value:g}</text>")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f"<text x='{(LEFT + WIDTH - RIGHT) / 2}' y='{HEIGHT - 4}' text-anchor='middle'>training step</text>")
    parts.append(
        f"<text transform='translate(11 {middle}) rotate(-90)' text-anchor='middle'>{html.escape(y_name)}</text>"
    )
    return "".join(parts)


def _band(frame: Frame, line: Line) -> str:
    if not line.band:
        return ""
    upper = [frame.at(x, high) for (x, _), (_, high) in zip(line.points, line.band, strict=True)]
    lower = [frame.at(x, low) for (x, _), (low, _) in zip(line.points, line.band, strict=True)]
    return f"<polygon class='band {line.colour}' points='{_coordinates([*upper, *reversed(lower)])}'/>"


def _path(frame: Frame, line: Line) -> str:
    points = [frame.at(x, y) for x, y in line.points]
    style = f"line {line.colour}{' planned' if line.planned else ''}"
    dots = [
        f"<circle class='dot {line.colour}' cx='{px:.1f}' cy='{py:.1f}' r='3'>"
        f"<title>{html.escape(line.name)}, step {x:g}: {y:.4g}</title></circle>"
        for (px, py), (x, y) in zip(points, line.points, strict=True)
    ]
    return f"<polyline class='{style}' points='{_coordinates(points)}'/>" + ("" if line.planned else "".join(dots))


def _coordinates(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
