"""Heat map, scatter and bars, beside the line charts of ``charts``."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2l_ext.report.charts import (
    MOST_DOTS,
    WIDE,
    Frame,
    Point,
    axes,
    coordinates,
    dot,
    figure,
    legend,
    round_range,
    tick_text,
    ticks,
)

MOST_COLUMNS = 120
LEGEND_SHADES = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_LABELS = 12
BAR_SHARE = 0.8
"""Of a bar's place that is filled."""


@dataclass(frozen=True)
class Column:
    """Mean of the rows of steps ``first`` to ``last``."""

    first: int
    last: int
    values: np.ndarray


@dataclass(frozen=True)
class Bars:
    """One bar for each label; ``colour`` is a CSS class."""

    name: str
    colour: str
    values: Sequence[float]


def columns(rows: Sequence[tuple[int, Sequence[float]]], most: int = MOST_COLUMNS) -> list[Column]:
    """Steps in at most ``most`` columns of equal width; a column without a step is left out."""
    first, last = rows[0][0], rows[-1][0]
    width = math.ceil((last - first + 1) / most)
    members: dict[int, list[Sequence[float]]] = {}
    for step, values in rows:
        members.setdefault((step - first) // width, []).append(values)
    return [
        Column(first + index * width, min(first + (index + 1) * width - 1, last), np.mean(found, axis=0))
        for index, found in sorted(members.items())
    ]


def heat_map(title: str, y_name: str, what: str, rows: Sequence[tuple[int, Sequence[float]]], reading: str) -> str:
    """x = training step, y = 0..1 in equal bins, colour = share. ``rows`` holds ``(step, shares)`` by step.

    The shade grows with the square root of the share, so that a narrow peak at one step does not hide the rest.
    """
    drawn = columns(rows)
    frame = Frame((drawn[0].first - 0.5, drawn[-1].last + 0.5), (0.0, 1.0), WIDE)
    largest = max(float(column.values.max()) for column in drawn) or 1.0
    cells = [_cell(frame, column, bin_, largest, what) for column in drawn for bin_ in range(len(column.values))]
    label = f"{what} by {y_name} and training step; the largest is {largest:.1%} in a cell"
    body = [axes(frame, y_name), *(_ground(frame, column) for column in drawn), *cells]
    return figure(title, label, body, _shades(largest, what), reading, wide=True)


def _ground(frame: Frame, column: Column) -> str:
    """Under a column's cells, so that a share of 0 differs from a step that was not logged."""
    return _rect("plot", frame, (column.first - 0.5, 0.0), (column.last + 0.5, 1.0))


def _cell(frame: Frame, column: Column, bin_: int, largest: float, what: str) -> str:
    value, height = float(column.values[bin_]), 1.0 / len(column.values)
    low = bin_ * height
    steps = f"step {column.first}" if column.first == column.last else f"steps {column.first} to {column.last}"
    name = f"{steps}, {low:.2f} to {low + height:.2f}: {value:.1%} of {what}" if value else ""
    shade = f" fill-opacity='{math.sqrt(max(value, 0.0) / largest):.3f}'"
    return _rect("cell", frame, (column.first - 0.5, low), (column.last + 0.5, low + height), name, shade)


def _rect(style: str, frame: Frame, low: Point, high: Point, name: str = "", more: str = "") -> str:
    # rounded before subtracting: otherwise neighbours miss each other by a hundredth, which shows as a seam
    (x0, y1), (x1, y0) = ([round(v, 2) for v in frame.at(*corner)] for corner in (low, high))
    place = f"x='{x0:.2f}' y='{y0:.2f}' width='{max(x1 - x0, 0):.2f}' height='{max(y1 - y0, 0):.2f}'"
    said = f"<title>{html.escape(name)}</title>" if name else ""
    return f"<rect class='{style}' {place}{more} shape-rendering='crispEdges'>{said}</rect>"


def _shades(largest: float, what: str) -> str:
    spans = [
        "<span><svg viewBox='0 0 16 12' aria-hidden='true'><rect class='plot' width='16' height='12'></rect>"
        f"<rect class='swatch' width='16' height='12' fill-opacity='{shade}'></rect></svg>"
        f"{shade * shade * largest:.1%}</span>"
        for shade in LEGEND_SHADES
    ]
    return f"<div class='key'><span>share of {html.escape(what)}:</span>{''.join(spans)}</div>"


def scatter(
    title: str,
    names: tuple[str, str],
    points: Sequence[tuple[int, float, float]],
    reading: str,
    curve: tuple[str, Sequence[Point]] | None = None,
) -> str:
    """``points`` are ``(step, x, y)`` with x in 0..1; ``names`` of the two axes; ``curve`` is a name and its points."""
    across = [x for _, x, _ in points]
    frame = Frame((min(0.0, *across), max(1.0, *across)), round_range([y for _, _, y in points]))
    at = [(value, tick_text(value)) for value in ticks(0.0, 1.0, 0.2)]
    body, entries = [axes(frame, names[1], names[0], at)], [("one training step", "learner")]
    body += [_step_dot(frame, point, named=len(points) <= MOST_DOTS) for point in points]
    if curve:
        body.append(f"<polyline class='curve explorer' points='{coordinates([frame.at(*p) for p in curve[1]])}'/>")
        entries.append((curve[0], "explorer"))
    return figure(title, f"{names[1]} against {names[0]}", body, legend(entries), reading)


def _step_dot(frame: Frame, point: tuple[int, float, float], named: bool) -> str:
    step, x, y = point
    return dot(frame.at(x, y), "learner", f"step {step}: {x:.4g}, {y:.4g}" if named else "")


def bars(title: str, names: tuple[str, str], labels: Sequence[str], groups: Sequence[Bars], reading: str) -> str:
    """Groups of bars side by side at each label; ``names`` of the two axes."""
    low, high = round_range([value for group in groups for value in group.values])
    frame = Frame((0.0, float(len(labels))), (low, high))
    every = math.ceil(len(labels) / MOST_LABELS)
    at = [(index + 0.5, text) for index, text in enumerate(labels) if index % every == 0]
    body = [axes(frame, names[1], names[0], at)]
    for place, group in enumerate(groups):
        body += [_bar(frame, index, place, len(groups), group, labels) for index in range(len(labels))]
    return figure(title, f"{names[1]} by {names[0]}", body, legend([(g.name, g.colour) for g in groups]), reading)


def _bar(frame: Frame, index: int, place: int, groups: int, group: Bars, labels: Sequence[str]) -> str:
    width = BAR_SHARE / groups
    left = index + (1 - BAR_SHARE) / 2 + place * width
    value = float(group.values[index])
    name = f"{group.name}, {labels[index]}: {value:.6g}"
    return _rect(f"bar {group.colour}", frame, (left, 0.0), (left + width, value), name)
