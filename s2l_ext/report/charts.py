"""The one way of drawing: lines, values by label, and a heat map, as inline SVG whose colours are CSS classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from markupsafe import Markup, escape

from s2l_ext.report.page import Range, empty, figure, parts

WIDTH, WIDE, HEIGHT = 460, 980, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 14, 36
MOST_DOTS, MOST_LARGE_DOTS, MOST_COLUMNS, MOST_LABELS = 150, 40, 120, 12
HALF_DIGIT, SHORT, FILLED, ROW = 3.5, 4, 0.8, 22
STEP, SHARE = "training step", (0.0, 1.0)
COLOURS = ("learner", "explorer", "third", "fourth", "fifth", "sixth")
STROKES = ("", " dashed", " dotted")
MOST_LINES = len(COLOURS) * len(STROKES)
"""That an eye can distinguish."""
NO_VALUES = "The run logged no values for this chart."

Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]


def colour(place: int) -> str:
    """CSS classes of the line or run at ``place``, the same in every chart and table."""
    return COLOURS[place % len(COLOURS)] + STROKES[place // len(COLOURS) % len(STROKES)]


@dataclass(frozen=True)
class Line:
    """Points ``(x, y)`` in data units; ``colour`` is a CSS class.

    Attributes:
        band: ``(low, high)`` for each point.
        style: "line" has a dot at each point; "planned" is broad and pale, to lie under what happened; "curve" has no
            dots; "points" have no line.
        says: what each point says under the pointer; empty: name, x and y.
    """

    name: str
    colour: str
    points: Sequence[Point]
    band: Sequence[Range] | None = None
    style: str = "line"
    says: Sequence[str] = ()

    @property
    def heights(self) -> list[float]:
        """Every y, those of the band too."""
        return [*(y for _, y in self.points), *(end for ends in self.band or () for end in ends)]


@dataclass(frozen=True)
class Values:
    """One value for each label, None where there is none: bars from 0, or dots where there are intervals."""

    name: str
    colour: str
    values: Sequence[float | None]
    intervals: Sequence[Range | None] = ()


@dataclass(frozen=True)
class Frame:
    """Data ranges of the two axes, and their map to pixels; ``doubling``: each doubling of x takes as much place."""

    x: Range
    y: Range
    width: int = WIDTH
    doubling: bool = False

    @cached_property
    def y_ticks(self) -> Ticks:
        return [(value, tick_text(value)) for value in ticks(*self.y, nice_step(self.y[1] - self.y[0]))]

    @cached_property
    def x_ticks(self) -> Ticks:
        if self.doubling:
            found = [2.0**power for power in range(32) if self.x[0] <= 2**power <= self.x[1]]
        else:
            found = ticks(*self.x, max(1.0, nice_step(self.x[1] - self.x[0], 6 * self.width // WIDTH)))
        return [(value, tick_text(value)) for value in found]

    @cached_property
    def left(self) -> float:
        """Long numbers would run into the name of the axis."""
        return LEFT + 2 * HALF_DIGIT * max([0, *(len(text) - SHORT for _, text in self.y_ticks)])

    def at(self, x: float, y: float) -> Point:
        first, x, last = (math.log2(value) if self.doubling else value for value in (self.x[0], x, self.x[1]))
        across, up = (x - first) / ((last - first) or 1.0), (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        return self.left + across * (self.width - self.left - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def pixels(self, points: Sequence[Point]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))


# ---- charts -------------------------------------------------------------------------------------------------------


def chart(
    title: str,
    y_name: str,
    lines: Sequence[Line],
    reading: str = "",
    y: Range | None = None,
    x_name: str = STEP,
    x: Range | None = None,
    x_ticks: Ticks | None = None,
    doubling: bool = False,
) -> Markup:
    """Lines over training steps, or what ``x_name`` says. None with a point gives a sentence.

    Args:
        reading: what a reader should see in it.
        y: fixed range; None spans 0 to a round number above the largest value, "(0 to 1)" in ``y_name`` 0 to 1.
        x: fixed range; None spans 0, or the first point of a ``doubling`` axis, to the last.
        x_ticks: places and texts; None for whole numbers.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return empty(title, NO_VALUES)
    along = [at for line in drawn for at, _ in line.points]
    x = x or ((min(along), max(along)) if doubling else (0.0, max(*along, 1.0)))
    y = y or (SHARE if "(0 to 1)" in y_name else round_range([at for line in drawn for at in line.heights]))
    frame = Frame(x, y, doubling=doubling)
    bands = [_band(frame, line) for line in drawn if line.band]
    paths = [_path(frame, line, "step" if x_name == STEP else "at") for line in drawn]
    svg = _svg(frame, f"{title}: {y_name} by {x_name}", [axes(frame, y_name, x_name, x_ticks), *bands, *paths])
    return figure(title, svg, [(line.name, line.colour) for line in drawn if line.name], reading)


def by_label(
    title: str, names: tuple[str, str], labels: Sequence[str], groups: Sequence[Values], reading: str = ""
) -> Markup:
    """Values side by side at each label; ``names`` of the two axes."""
    ends = [end for group in groups for interval in group.intervals if interval for end in interval]
    frame = Frame(
        (0.0, float(len(labels))), round_range([*ends, *(v for g in groups for v in g.values if v is not None)])
    )
    every = math.ceil(len(labels) / MOST_LABELS)
    at = [(index + 0.5, text) for index, text in enumerate(labels) if index % every == 0]
    width, body = FILLED / len(groups), [axes(frame, names[1], names[0], at)]
    for place, group in enumerate(groups):
        for index, label in enumerate(labels):
            body.append(_value(frame, group, index, label, index + (1 - FILLED) / 2 + place * width, width))
    svg = _svg(frame, f"{title}: {names[1]} by {names[0]}", body)
    return figure(title, svg, [(group.name, group.colour) for group in groups], reading)


def differences(
    title: str, x_name: str, rows: Sequence[tuple[str, float, Range]], colours: Sequence[str], reading: str = ""
) -> Markup:
    """A line for each label: a value with its interval, beside 0."""
    ends = [end for _, value, interval in rows for end in (value, *interval)]
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    high = high if high > low else low + 1.0
    left, step = 14 + 2 * HALF_DIGIT * max(len(label) for label, *_ in rows), nice_step(high - low)
    bottom = TOP + ROW * len(rows)

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - RIGHT - 2 * SHORT)

    body = []
    for value in ticks(low, high, step):
        style = "zero" if value == 0 else "grid"
        body.append(tag("line", class_=style, x1=across(value), x2=across(value), y1=TOP, y2=bottom))
        body.append(tag("text", tick_text(value), x=across(value), y=bottom + 16, text_anchor="middle"))
    for place, (label, value, (first, last)) in enumerate(rows):
        y, style = TOP + ROW * (place + 0.5), colours[place]
        name = f"{label}: {value:+.4g} ({first:+.4g} to {last:+.4g})"
        body.append(tag("text", label, x=left - 8, y=y + 4, text_anchor="end"))
        body.append(tag("polyline", class_=f"line {style}", points=f"{across(first):.1f},{y} {across(last):.1f},{y}"))
        body.append(_dot((across(value), y), style, name, 4))
    body.append(tag("text", x_name, x=(left + WIDTH) / 2, y=bottom + 32, text_anchor="middle"))
    svg = tag("svg", *body, viewBox=f"0 0 {WIDTH} {bottom + BOTTOM}", role="img", aria_label=f"{title}: {x_name}")
    return figure(title, svg, (), reading)


def heat_map(title: str, y_name: str, what: str, rows: Sequence[tuple[int, Sequence[float]]], reading: str) -> Markup:
    """x = training step, y = 0..1 in equal bins, colour = share. ``rows`` holds ``(step, shares)`` by step.

    The shade grows with the square root of the share, so that a narrow peak at one step does not hide the rest.
    """
    drawn, body = columns(rows), []
    frame = Frame((drawn[0][0] - 0.5, drawn[-1][1] + 0.5), SHARE, WIDE)
    largest = max(float(values.max()) for *_, values in drawn) or 1.0
    for first, last, values in drawn:
        steps = f"step {first}" if first == last else f"steps {first} to {last}"
        # the ground tells a share of 0 from a step that was not logged
        body.append(_rect("plot", frame, (first - 0.5, 0.0), (last + 0.5, 1.0)))
        edges = np.linspace(0, 1, len(values) + 1).tolist()
        for low, high, value in zip(edges, edges[1:], values.tolist(), strict=False):
            name = f"{steps}, {low:.2f} to {high:.2f}: {value:.1%} of {what}" if value else ""
            shade = f"{math.sqrt(max(value, 0.0) / largest):.3f}"
            body.append(_rect("cell", frame, (first - 0.5, low), (last + 0.5, high), name, fill_opacity=shade))
    label = f"{title}: {what} by {y_name} and training step; the largest is {largest:.1%} in a cell"
    key = parts.shades(what, [(shade, f"{shade * shade * largest:.1%}") for shade in (0.0, 0.25, 0.5, 0.75, 1.0)])
    return figure(title, _svg(frame, label, [axes(frame, y_name), *body]) + key, reading=reading, wide=True)


def columns(rows: Sequence[tuple[int, Sequence[float]]], most: int = MOST_COLUMNS) -> list[tuple[int, int, np.ndarray]]:
    """First step, last step and mean of at most ``most`` columns of equal width; one without a step is left out."""
    first, last = rows[0][0], rows[-1][0]
    width = math.ceil((last - first + 1) / most)
    members: dict[int, list[Sequence[float]]] = {}
    for step, values in rows:
        members.setdefault(step - (step - first) % width, []).append(values)
    return [(start, min(start + width - 1, last), np.mean(found, axis=0)) for start, found in sorted(members.items())]


# ---- ranges and ticks ---------------------------------------------------------------------------------------------


def round_range(values: Sequence[float], least: float = 0.0) -> Range:
    """From the smallest value, or ``least`` if that is lower, to the largest, both to round numbers outside."""
    least, most = min(least, *values), max(values)
    step = nice_step(most - least)
    low = math.floor(least / step) * step
    return low, max(low + step, math.ceil(most / step) * step)


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
    """Short enough for the name of the axis."""
    text = f"{value:g}"
    if len(text) <= 5 and "e" not in text:
        return text
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# ---- SVG ----------------------------------------------------------------------------------------------------------


def tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element; ``class_`` is ``class`` and ``text_anchor`` is ``text-anchor``. All that is given is escaped."""
    words = "".join(
        f" {key.rstrip('_').replace('_', '-')}='{escape(f'{value:.2f}' if isinstance(value, float) else value)}'"
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{words}>{''.join(map(escape, inside))}</{name}>")  # noqa: S704 - escaped just above


def _svg(frame: Frame, label: str, body: Sequence[Markup]) -> Markup:
    return tag("svg", *body, viewBox=f"0 0 {frame.width} {HEIGHT}", role="img", aria_label=label)


def axes(frame: Frame, y_name: str, x_name: str = STEP, x_ticks: Ticks | None = None) -> Markup:
    """Grid lines, numbers and names."""
    right, bottom, found = float(frame.width - RIGHT), HEIGHT - BOTTOM + 16, []
    for value, text in frame.y_ticks:
        y, style = frame.at(frame.x[0], value)[1], "zero" if value == 0 > frame.y[0] else "grid"
        found.append(tag("line", class_=style, x1=frame.left, x2=right, y1=y, y2=y))
        found.append(tag("text", text, x=frame.left - 6, y=y + 4, text_anchor="end"))
    for value, text in frame.x_ticks if x_ticks is None else x_ticks:
        x, _ = frame.at(value, frame.y[0])
        x, anchor = (x, "middle") if x + len(text) * HALF_DIGIT <= frame.width else (float(frame.width), "end")
        found.append(tag("text", text, x=x, y=bottom, text_anchor=anchor))
    found.append(tag("text", x_name, x=(frame.left + right) / 2, y=HEIGHT - 4, text_anchor="middle"))
    turned = f"translate(11 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"
    return Markup().join([*found, tag("text", y_name, transform=turned, text_anchor="middle")])


def _band(frame: Frame, line: Line) -> Markup:
    places = [(x, *ends) for (x, _), ends in zip(line.points, line.band or (), strict=True)]
    around = [*((x, high) for x, _, high in places), *((x, low) for x, low, _ in reversed(places))]
    return tag("polygon", class_=f"band {line.colour}", points=frame.pixels(around))


def _path(frame: Frame, line: Line, word: str) -> Markup:
    many, style = len(line.points) > MOST_DOTS, f" {line.style}" if line.style in ("planned", "curve") else ""
    drawn = tag("polyline", class_=f"line {line.colour}{style}", points=frame.pixels(line.points))
    if style or (line.style == "line" and many):
        return drawn
    words = line.says or [f"{line.name}, {word} {x:.6g}: {y:.4g}" for x, y in line.points]
    radius = 3 if len(line.points) <= MOST_LARGE_DOTS else 2
    dots = [
        _dot(frame.at(*at), line.colour, "" if many else s, radius) for at, s in zip(line.points, words, strict=True)
    ]
    return Markup().join([drawn, *dots] if line.style == "line" else dots)


def _dot(at: Point, colour: str, name: str, radius: int) -> Markup:
    return tag("circle", _title(name), class_=f"dot {colour}", cx=at[0], cy=at[1], r=radius)


def _title(name: str) -> Markup:
    """A mark names itself under the pointer, if it has a name."""
    return tag("title", name) if name else Markup()


def _value(frame: Frame, group: Values, index: int, label: str, left: float, width: float) -> Markup:
    """A bar, or a dot on the line of its interval."""
    value = group.values[index]
    if value is None:
        return Markup()
    name = f"{group.name}, {label}: {value:.6g}"
    if not group.intervals:
        return _rect(f"bar {group.colour}", frame, (left, 0.0), (left + width, value), name)
    low, high = group.intervals[index] or (value, value)
    ends = frame.pixels([(left + width / 2, low), (left + width / 2, high)])
    dot = _dot(frame.at(left + width / 2, value), group.colour, f"{name} ({low:.4g} to {high:.4g})", 4)
    return tag("polyline", class_=f"line {group.colour}", points=ends) + dot


def _rect(style: str, frame: Frame, low: Point, high: Point, name: str = "", **more: str) -> Markup:
    # rounded before subtracting: otherwise neighbours miss each other by a hundredth, which shows as a seam
    (x0, y1), (x1, y0) = ([round(v, 2) for v in frame.at(*corner)] for corner in (low, high))
    place = {"x": x0, "y": y0, "width": max(x1 - x0, 0.0), "height": max(y1 - y0, 0.0)}
    return tag("rect", _title(name), class_=style, **place, **more, shape_rendering="crispEdges")
