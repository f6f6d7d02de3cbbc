"""The numbers of :mod:`.measure` as a table and a page of one file with charts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

from markupsafe import Markup

from s2l_ext.report.charts import Line, Values, by_label, chart, colour, round_range
from s2l_ext.report.page import Section, page, table
from s2l_ext.studies.diversity import table as diversity_table

PAGE = "diversity.html"
SCALARS = {
    "distinct answers": ("distinct_answers",),
    "Self-BLEU": ("self_bleu",),
    "edit diversity": ("edit_diversity",),
}
GRADIENTS = {
    "variance A·g": ("gradients", "advantage", "relative_variance"),
    "variance g": ("gradients", "score", "relative_variance"),
    "cosine A·g": ("gradients", "advantage", "cosine"),
    "cosine g": ("gradients", "score", "cosine"),
}
BANDS = "Bands are 95 % intervals over problems."


def render(result: dict[str, Any]) -> str:
    """The whole page of what ``diversity.json`` holds: six charts, three where no models were given, and the table."""
    learner, sentence = result["learner"], result["recommendation"]["sentence"]
    first = result["sets"][learner]
    drawn = [_pass_at_k(result), _prefix_match(result), _scalars(result)]
    drawn += [_entropy(result), _autocorrelation(result)] if "entropy" in first else []
    drawn += [_gradients(result)] if "gradients" in first else []
    said = [diversity_table.crossing_line(result, name) for name in result["crossings"]]
    numbers = table("Numbers", *diversity_table.table(result), " ".join([*said, *diversity_table.notes(result)]))
    found = [Section("charts", "Charts", drawn), Section("numbers", "Numbers", [numbers])]
    return page(f"s2l diversity: {learner}", f"Which explorer for {learner}?", sentence, found)


def _lines(result: dict[str, Any], kind: str, places: str, label: str = "{}", stroke: str = "") -> list[Line]:
    """The known part of each set's curve with its band; one colour for each set in every chart."""
    found = []
    for number, (name, values) in enumerate(result["sets"].items()):
        curve = values.get(kind)
        if curve is not None:
            columns = [
                values[kind.removesuffix("_shuffled")][places],
                *(curve[key] for key in ("values", "low", "high")),
            ]
            rows = zip(*columns, strict=True)
            known = [row for row in rows if row[1] is not None]
            points, band = [(x, y) for x, y, *_ in known], [(low, high) for *_, low, high in known]
            found.append(Line(label.format(name), colour(number) + stroke, points, band))
    return found


def _pass_at_k(result: dict[str, Any]) -> Markup:
    lines, learner = _lines(result, "pass_at_k", "k"), result["learner"]
    crosses = [
        Line("", line.colour, [(k, _height(line, k)) for k in found["at_k"]], style="crosses", says=found["at_k"])
        for line in lines
        if (found := result["crossings"].get(line.name))
    ]
    reading = f"× crosses the curve of {learner}. {BANDS}"
    return chart("pass@k", "share of problems solved", [*lines, *crosses], reading, x_name="k (samples)", doubling=True)


def _height(line: Line, k: float) -> float:
    """Of the straight line between two whole k, from 1."""
    low = int(k)
    left, right = line.points[low - 1][1], line.points[min(low, len(line.points) - 1)][1]
    return left + (k - low) * (right - left)


def _prefix_match(result: dict[str, Any]) -> Markup:
    lines, title = _lines(result, "prefix_match", "positions"), "Pairs that are still the same"
    return chart(title, "share of pairs", lines, BANDS, x_name="first t tokens", doubling=True)


def _entropy(result: dict[str, Any]) -> Markup:
    lines, title = _lines(result, "entropy_by_position", "starts"), "Entropy of the next token by position"
    y = round_range([at for line in lines for at in line.heights], least=math.inf)
    return chart(title, "nats", lines, BANDS, y, "position (token)", doubling=True)


def _autocorrelation(result: dict[str, Any]) -> Markup:
    lines = _lines(result, "autocorrelation", "lags")
    lines += _lines(result, "autocorrelation_shuffled", "lags", "{}, tokens in random order", " dashed")
    title = f"Autocorrelation of log p(sampler) - log p({result['learner']})"
    return chart(title, "correlation", lines, BANDS, x_name="lag (tokens)")


def _scalars(result: dict[str, Any]) -> Markup:
    title = f"Diversity of a problem's samples (n = {result['n']})"
    return _dots(result, title, "0 to 1", SCALARS, "Low Self-BLEU: diverse.")


def _gradients(result: dict[str, Any]) -> Markup:
    title, reading = (
        f"Gradients of {result['learner']} within a group",
        "Variance over mean squared norm; pairwise cosine.",
    )
    return _dots(result, title, "", GRADIENTS, reading)


def _dots(result: dict[str, Any], title: str, y: str, measures: Mapping[str, tuple[str, ...]], reading: str) -> Markup:
    """One dot with its interval for each measure and set, side by side."""
    groups = []
    for number, (name, values) in enumerate(result["sets"].items()):
        found = [reduce(lambda inner, key: inner.get(key, {}), path, values) for path in measures.values()]
        groups.append(Values(name, colour(number), *([one.get(key) for one in found] for key in ("value", "ci95"))))
    return by_label(title, ("", y), list(measures), groups, reading)
