"""The numbers of :mod:`.measure`: a table (a column for each set of samples, a row for each number) and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

from markupsafe import Markup

from s2l_ext.report.charts import Line, Values, by_label, chart, colour, round_range
from s2l_ext.report.page import Section, page, table
from s2l_ext.utils.text_table import text_table

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

ROWS = (
    ("pass@1", ("pass_at_1",), 3),
    ("pass@{n}", ("pass_at_n",), 3),
    ("distinct answers / sample", ("distinct_answers",), 3),
    ("Self-BLEU (low: diverse)", ("self_bleu",), 3),
    ("edit diversity", ("edit_diversity",), 3),
    ("half of the pairs part by token", ("prefix_half",), 1),
    ("steps that follow", ("coherence",), 3),
    ("groups right and wrong", ("mixed_groups",), 3),
    ("responses with an answer", ("answered",), 3),
    ("mean length (tokens)", ("mean_length",), 1),
    ("truncated", ("truncation_rate",), 3),
    ("entropy (nats / token)", ("entropy",), 3),
    ("KL to the learner (nats / token)", ("kl_to_learner",), 4),
    ("log-ratio autocorrelation, lag 1", ("autocorrelation", 1), 3),
    ("  same, tokens in random order", ("autocorrelation_shuffled", 1), 3),
    ("  difference of the two", ("autocorrelation_excess",), 3),
    ("gradient A*g: variance / norm²", ("gradients", "advantage", "relative_variance"), 3),
    ("gradient A*g: mean cosine", ("gradients", "advantage", "cosine"), 3),
    ("gradient A*g: norm of the mean", ("gradients", "advantage", "mean_gradient_norm"), 3),
    ("gradient g: variance / norm²", ("gradients", "score", "relative_variance"), 3),
    ("gradient g: mean cosine", ("gradients", "score", "cosine"), 3),
    ("gradient g: norm of the mean", ("gradients", "score", "mean_gradient_norm"), 3),
)
"""Name, path of keys in a set (a number is a place from 1 in a curve), and digits."""


def render(result: dict[str, Any]) -> str:
    """The whole page of what ``diversity.json`` holds: six charts, three where no models were given, and the table."""
    learner, sentence = result["learner"], result["recommendation"]["sentence"]
    first, title = result["sets"][learner], f"Diversity of a problem's samples (n = {result['n']})"
    passed, same = _lines(result, "pass_at_k", "k"), _lines(result, "prefix_match", "positions")
    drawn = [
        chart("pass@k", "share of problems solved", passed, BANDS, x_name="k (samples)", doubling=True),
        chart("Pairs that are still the same", "share of pairs", same, BANDS, x_name="first t tokens", doubling=True),
        _dots(result, title, "0 to 1", SCALARS, "Low Self-BLEU: diverse."),
    ]
    drawn += [_entropy(result), _autocorrelation(result)] if "entropy" in first else []
    if "gradients" in first:
        reading = "Variance over mean squared norm; pairwise cosine."
        drawn.append(_dots(result, f"Gradients of {learner} within a group", "", GRADIENTS, reading))
    numbers = table("Numbers", *number_table(result), " ".join(notes(result)))
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


def _entropy(result: dict[str, Any]) -> Markup:
    lines, title = _lines(result, "entropy_by_position", "starts"), "Entropy of the next token by position"
    y = round_range([at for line in lines for at in line.heights], least=math.inf)
    return chart(title, "nats", lines, BANDS, y, "position (token)", doubling=True)


def _autocorrelation(result: dict[str, Any]) -> Markup:
    lines = _lines(result, "autocorrelation", "lags")
    lines += _lines(result, "autocorrelation_shuffled", "lags", "{}, tokens in random order", " dashed")
    title = f"Autocorrelation of log p(sampler) - log p({result['learner']})"
    return chart(title, "correlation", lines, BANDS, x_name="lag (tokens)")


def _dots(result: dict[str, Any], title: str, y: str, measures: Mapping[str, tuple[str, ...]], reading: str) -> Markup:
    """One dot with its interval for each measure and set, side by side."""
    groups = []
    for number, (name, values) in enumerate(result["sets"].items()):
        found = [reduce(lambda inner, key: inner.get(key, {}), path, values) for path in measures.values()]
        groups.append(Values(name, colour(number), *([one.get(key) for one in found] for key in ("value", "ci95"))))
    return by_label(title, ("", y), list(measures), groups, reading)


# ---- the table ----------------------------------------------------------------------------------------------------


def number_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Titles of the columns, and rows of cells; rows that no set has are left out."""
    sets = result["sets"]
    rows = []
    for name, path, digits in ROWS:
        cells = [_cell(values, path, digits) for values in sets.values()]
        if any(cells):
            rows.append([name.format(n=result["n"]), *cells])
    return ["", *sets], rows


def as_lines(result: dict[str, Any]) -> list[str]:
    """Table, what the gradients are over, and the recommendation."""
    return [text_table(*number_table(result)), "", *notes(result), "", result["recommendation"]["sentence"]]


def notes(result: dict[str, Any]) -> list[str]:
    """What the numbers rest on."""
    lines = [
        f"{result['num_problems']} problems, {result['n']} samples each ({result['compared']} for Self-BLEU and edit "
        f"diversity); brackets: {result['interval']}."
    ]
    drawn = [f"{name} {v['temperature']:g} / {v['top_p']:g}" for name, v in result["sets"].items()]
    lines.append(f"Temperature / top-p: {', '.join(drawn)}.")
    chosen = result["gradient_parameters"]
    if chosen is not None:
        sketch = "" if chosen["sketch"] is None else f", sketched to {chosen['sketch']:,} numbers"
        groups = ", ".join(
            f"{name} {values['gradients']['num_with_signal']}"
            for name, values in result["sets"].items()
            if "gradients" in values
        )
        number = result["sets"][result["learner"]]["gradients"]["num_problems"]
        lines.append(
            f"Gradients over {chosen['parameters']} parameters ({chosen['count']:,}{sketch}) on {number} problems; "
            f"groups with an advantage: {groups}."
        )
    return lines


def _cell(values: dict[str, Any], path: tuple[str | int, ...], digits: int) -> str:
    found: Any = values
    for key in path:
        if isinstance(key, int):
            found = {"value": found["values"][key - 1], "ci95": [found["low"][key - 1], found["high"][key - 1]]}
        elif key not in found:
            return ""
        else:
            found = found[key]
    if found["value"] is None:
        return "none"
    low, high = found["ci95"]
    return f"{found['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
