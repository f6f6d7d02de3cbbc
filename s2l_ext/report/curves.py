"""The charts of ``charts.yaml``: of one run, and of several, or of a pipeline's stages, on common axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml
from markupsafe import Markup

from s2l_ext.report.charts import Line, Point, chart, colour
from s2l_ext.report.page import Section
from s2l_ext.report.run import Run
from s2l_ext.report.seeds import Seeds
from s2l_ext.training.batch_fields import SOURCES

CHARTS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("charts.yaml").read_text(encoding="utf-8"))
SHARE_OF_EXPLORER, PLANNED_SHARE = "s2l/explorer/fraction", "s2l/explorer/planned_fraction"
PLANNED = ("as planned", "target")
OTHERS = ("learner", "third", "fourth", "fifth")
"""Colours of lines that belong to no source."""


class Logged(Protocol):
    """A run, seeds of one configuration (which have a band), or a stage of a pipeline."""

    @property
    def name(self) -> str: ...

    def series(self, key: str) -> Sequence[Point]: ...


def sections(run: Run, group: str = "one_run") -> list[Section]:
    """The sections of a group that the run logged."""
    found = []
    for name, what in CHARTS[group].items():
        drawn = [figure for one in what["charts"] for figure in of_run(run, **one)]
        if drawn and ("needs" not in what or run.series(what["needs"])):
            found.append(Section(name, what["title"], drawn))
    return found


def of_run(
    run: Run, title: str, unit: str, lines: dict[str, str], reading: str, otherwise: dict[str, str] | None = None
) -> list[Markup]:
    """The chart, or none where the run logged nothing of it."""
    found = _lines(run, lines)
    if all(line.style == "planned" for line in found):
        found += _lines(run, otherwise or {})
    return [chart(title, unit, found, reading)] if any(line.style != "planned" for line in found) else []


def _lines(run: Run, named: dict[str, str]) -> list[Line]:
    found: list[Line] = []
    colours = iter(OTHERS)
    for name, key in named.items():
        colour = "plan" if name in PLANNED else next((who for who in SOURCES if who in name), None) or next(colours)
        points = planned_share(run) if key == PLANNED_SHARE else run.series(key)
        if points:
            found.append(Line(name, colour, points, style="planned" if name in PLANNED else "line"))
    return found


def planned_share(run: Run) -> list[tuple[int, float]]:
    """Of the explorer, up to the last step that was made; empty without a plan."""
    explorer, group_size, made = run.plan.get("explorer"), run.plan.get("group_size"), run.series(SHARE_OF_EXPLORER)
    slots = explorer.get("slots") if isinstance(explorer, dict) else None
    if not slots or not group_size or not made:
        return []
    return [(step, count / group_size) for step, count in enumerate(slots, start=1) if step <= made[-1][0]]


def common_sections(runs: Sequence[Logged], group: str) -> list[Section]:
    """One line for each run, a chart for each metric that one of them logged."""
    found = []
    for name, what in CHARTS[group].items():
        logged = [one for one in what["charts"] if any(run.series(one["key"]) for run in runs)]
        if logged:
            found.append(Section(name, what["title"], [_common(runs, **one) for one in logged]))
    return found


def _common(runs: Sequence[Logged], key: str, title: str, unit: str, reading: str = "") -> Markup:
    bands = [run.band(key) if isinstance(run, Seeds) else None for run in runs]
    lines = [Line(run.name, colour(n), run.series(key), bands[n]) for n, run in enumerate(runs)]
    return chart(title, unit, lines, reading)
