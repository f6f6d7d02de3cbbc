"""Line charts, and the parts of every chart, as inline SVG. Colours are CSS classes: a page decides light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

WIDTH, WIDE, HEIGHT = 460, 980, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 14, 36
MOST_DOTS, MOST_LARGE_DOTS = 150, 40
HALF_DIGIT, SHORT = 3.5, 4
UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
STEP = "training step"
NO_VALUES = "The run logged no values for this chart."

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
    width: int = WIDTH

    @cached_property
    def y_ticks(self) -> list[tuple[float, str]]:
        return [(value, tick_text(value)) for value in ticks(*self.y, nice_step(self.y[1] - self.y[0]))]

    @cached_property
    def left(self) -> float:
        """Long numbers would run into the name of the axis."""
        return LEFT + 2 * HALF_DIGIT * max([0, *(len(text) - SHORT for _, text in self.y_ticks)])

    def at(self, x: float, y: float) -> Point:
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        return self.left + across * (self.width - self.left - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def chart(
    title: str,
    y_name: str,
    lines: list[Line],
    y_range: tuple[float, float] | None = None,
    reading: str = "",
    x_name: str = STEP,
) -> str:
    """One chart over ``x_name``. Lines without points are left out; none at all gives a sentence.

    Args:
        y_range: fixed range; None spans 0 to a round number above the largest value.
        reading: what a reader should see in it.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return empty(title)
    steps = [x for line in drawn for x, _ in line.points]
    frame = Frame((0.0, max(*steps, 1.0)), y_range or round_range([y for line in drawn for _, y in line.points]))
    paths = (_path(frame, line, "step" if x_name == STEP else "at") for line in drawn)
    body = [axes(frame, y_name, x_name), *(_band(frame, line) for line in drawn), *paths]
    return figure(title, f"{y_name} by {x_name}", body, legend([(line.name, line.colour) for line in drawn]), reading)


def empty(title: str, why: str = NO_VALUES) -> str:
    """A figure that says in a sentence why there is nothing to draw."""
    return f"<figure>{_caption(title)}<p class='note'>{html.escape(why)}</p></figure>"


def figure(title: str, label: str, body: Sequence[str], key: str, reading: str = "", wide: bool = False) -> str:
    """Title, drawing, key and the sentence that says what to see. ``wide`` spans the page."""
    label = html.escape(f"{title}: {label}", quote=True)
    svg = f"<svg viewBox='0 0 {WIDE if wide else WIDTH} {HEIGHT}' role='img' aria-label='{label}'>{''.join(body)}</svg>"
    said = f"<p class='reading'>{html.escape(reading)}</p>" if reading else ""
    return f"<figure{' class=wide' if wide else ''}>{_caption(title)}{svg}{key}{said}</figure>"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """``(name, colour)`` of what is drawn."""
    spans = "".join(f"<span class='{colour}'><i></i>{html.escape(name)}</span>" for name, colour in entries)
    return f"<div class='legend'>{spans}</div>"


def _caption(title: str) -> str:
    return f"<figcaption>{html.escape(title)}</figcaption>"


def round_range(values: Sequence[float]) -> tuple[float, float]:
    """From 0, or a round number below the smallest, to a round number above the largest."""
    step = nice_step(max(values) - min(0.0, *values))
    return min(0.0, math.floor(min(values) / step) * step), max(step, math.ceil(max(values) / step) * step)


def nice_step(span: float, ticks: int = 4) -> float:
    """The smallest of 1, 2, 5 times a power of ten that covers ``span`` in at most ``ticks`` + 1 steps."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / ticks))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * (ticks + 1) >= span)


def ticks(low: float, high: float, step: float) -> list[float]:
    """Multiples of ``step`` within the range."""
    first = math.ceil(low / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """Short enough to leave room for the name of the axis."""
    text = f"{value:g}"
    if len(text) <= 5 and "e" not in text:
        return text
    for limit, unit in UNITS:
        if 1000 * limit > abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def axes(frame: Frame, y_name: str, x_name: str = STEP, at: Sequence[tuple[float, str]] | None = None) -> str:
    """Grid lines, numbers and names; ``at`` gives the places and texts on the x axis, None for whole steps."""
    parts = []
    for value, text in frame.y_ticks:
        _, y = frame.at(frame.x[0], value)
        parts.append(f"<line class='grid' x1='{frame.left:g}' x2='{frame.width - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{frame.left - 6:g}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>")
    for value, text in whole_steps(frame) if at is None else at:
        x, _ = frame.at(value, frame.y[0])
        anchor = "middle"
        if x + len(text) * HALF_DIGIT > frame.width:
            x, anchor = frame.width, "end"
        parts.append(f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 16}' text-anchor='{anchor}'>{html.escape(text)}</text>")
    middle, centre = (TOP + HEIGHT - BOTTOM) / 2, (frame.left + frame.width - RIGHT) / 2
    parts.append(f"<text x='{centre}' y='{HEIGHT - 4}' text-anchor='middle'>{html.escape(x_name)}</text>")
    parts.append(
        f"<text transform='translate(11 {middle}) rotate(-90)' text-anchor='middle'>{html.escape(y_name)}</text>"
    )
    return "".join(parts)


def whole_steps(frame: Frame) -> list[tuple[float, str]]:
    return [
        (value, tick_text(value))
        for value in ticks(*frame.x, max(1.0, nice_step(frame.x[1] - frame.x[0], 6 * frame.width // WIDTH)))
    ]


def _band(frame: Frame, line: Line) -> str:
    if not line.band:
        return ""
    upper = [frame.at(x, high) for (x, _), (_, high) in zip(line.points, line.band, strict=True)]
    lower = [frame.at(x, low) for (x, _), (low, _) in zip(line.points, line.band, strict=True)]
    return f"<polygon class='band {line.colour}' points='{coordinates([*upper, *reversed(lower)])}'/>"


def _path(frame: Frame, line: Line, word: str) -> str:
    points = [frame.at(x, y) for x, y in line.points]
    style = f"line {line.colour}{' planned' if line.planned else ''}"
    drawn = f"<polyline class='{style}' points='{coordinates(points)}'/>"
    if line.planned or len(points) > MOST_DOTS:
        return drawn
    names = [f"{line.name}, {word} {x:.6g}: {y:.4g}" for x, y in line.points]
    radius = 3 if len(points) <= MOST_LARGE_DOTS else 2
    return drawn + "".join(dot(at, line.colour, name, radius) for at, name in zip(points, names, strict=True))


def dot(at: Point, colour: str, name: str, radius: int = 3) -> str:
    """A point that names itself under the pointer, if it has a name."""
    said = f"<title>{html.escape(name)}</title>" if name else ""
    return f"<circle class='dot {colour}' cx='{at[0]:.1f}' cy='{at[1]:.1f}' r='{radius}'>{said}</circle>"


def coordinates(points: Sequence[Point]) -> str:
    """Pixels as ``points`` of a polyline or polygon."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
