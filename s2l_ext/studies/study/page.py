"""A study as one page: intervals of every arm, curves over seeds, the table, and what may be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from markupsafe import Markup

from s2l_ext.evaluation.seeds import accuracy_over_seeds
from s2l_ext.report.charts import Line, chart, colour, differences
from s2l_ext.report.page import Section, empty, page, table
from s2l_ext.report.results import joined
from s2l_ext.studies.study.file import Study
from s2l_ext.studies.study.results import ALL, Result
from s2l_ext.studies.study.table import HEAD, Row, cells, sentences, sources

READING = "Bands and whiskers are 95 % intervals over seeds (Student's t). Higher is better."


def render(study: Study, rows: Sequence[Row], results: Mapping[str, Sequence[Result]]) -> str:
    """The whole page."""
    curves = [_curve(name, place, runs) for place, (name, runs) in enumerate(results.items())]
    drawn = [
        _beside_the_baseline(study.baseline.name, rows, list(results)),
        chart("Accuracy during training", "accuracy (0 to 1)", [line for line in curves if line.points], READING),
    ]
    numbers = [table("Numbers", HEAD, [cells(row) for row in rows])]
    head, by_source = sources(study, results)
    if by_source:
        numbers.append(table("By data source", head, by_source, READING))
    found = [Section("charts", "Charts", drawn), Section("numbers", "Numbers", numbers)]
    return page(f"s2l study: {study.name}", study.name, "\n".join(sentences(rows)), found)


def _beside_the_baseline(baseline: str, rows: Sequence[Row], order: Sequence[str]) -> Markup:
    title = "At the end, beside the baseline"
    found = [(row.arm, row.difference.mean, row.difference.ci95) for row in rows if row.difference]
    if not found:
        return empty(title, "No arm but the baseline has two runs that ended well.")
    colours = [colour(order.index(name)) for name, *_ in found]
    return differences(title, f"accuracy minus that of {baseline}", found, colours, READING)


def _curve(name: str, place: int, runs: Sequence[Result]) -> Line:
    """Means over seeds at the steps that every run validated."""
    good = [one.curve.get(ALL, []) for one in runs if not one.error]
    found = joined(good)
    ends = [accuracy_over_seeds(values).ci95 for _, values in found] if len(good) > 1 else []
    return Line(name, colour(place), [(step, fmean(values)) for step, values in found], ends or None)
