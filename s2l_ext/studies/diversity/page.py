"""``s2l diversity``: the numbers of :mod:`.measure` as a table, a picture and a page of one file."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.report.style import GENERATOR, document
from s2l_ext.studies.diversity import table as diversity_table
from s2l_ext.studies.diversity.job import RESULT, add_arguments, compare
from s2l_ext.utils.files import write_atomically

__all__ = ["add_arguments", "draw", "main", "page"]

Panel = Callable[[Any, dict[str, Any]], None]
PICTURE, PAGE = "diversity.png", "diversity.html"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4f9e", "#7f7f7f")
BAND_ALPHA = 0.15
DPI = 110
KEYS = ("values", "low", "high")
NOTHING = {"value": None, "ci95": None}
SCALARS = (("distinct\nanswers", "distinct_answers"), ("Self-BLEU", "self_bleu"), ("edit\ndiversity", "edit_diversity"))
GRADIENTS = (
    ("variance\nA·g", "advantage", "relative_variance"),
    ("variance\ng", "score", "relative_variance"),
    ("cosine\nA·g", "advantage", "cosine"),
    ("cosine\ng", "score", "cosine"),
)


def main(args: argparse.Namespace) -> int:
    """``s2l diversity``. Returns the exit status; what cannot be compared raises."""
    _require_matplotlib()
    _refuse_foreign_page(args.out / PAGE)
    result = compare(args)
    _write(args.out, result)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print("\n".join(diversity_table.as_lines(result)))
        print(f"written    {', '.join(str(args.out / name) for name in (RESULT, PICTURE, PAGE))}")
    return 0


def _require_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "s2l diversity: matplotlib is not installed (the picture). Install it: pip install 's2l-ext[report]'"
        )


def _refuse_foreign_page(path: Path) -> None:
    if path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:200]:
        raise DataError(f"{path}: not made by s2l, so it is kept. Choose another folder with --out.")


def _write(out: Path, result: dict[str, Any]) -> None:
    picture = draw(result)
    try:
        write_atomically(out / PICTURE, picture)
        write_atomically(out / PAGE, page(result, picture))
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}). Choose another folder with --out.") from error


def page(result: dict[str, Any], picture: bytes) -> str:
    """The whole page; the picture is inside."""
    learner, sentence = result["learner"], result["recommendation"]["sentence"]
    image = base64.b64encode(picture).decode()
    alt = "pass@k, prefix match, diversity, entropy, autocorrelation and gradients of each set; numbers in the table"
    crossings = [diversity_table.crossing_line(result, name) for name in result["crossings"]]
    said = "".join(f"<p class='note'>{html.escape(line)}</p>" for line in [*crossings, *diversity_table.notes(result)])
    body = [
        f"<h1>Which explorer for {html.escape(learner)}?</h1><p class='lead'>{html.escape(sentence)}</p>",
        f"<img alt='{alt}' style='width:100%' src='data:image/png;base64,{image}'>",
        f"<h2>Numbers</h2><div class='scroll'>{_table(result)}</div>{said}",
    ]
    return document(f"s2l diversity: {learner}", "".join(body))


def _table(result: dict[str, Any]) -> str:
    titles, rows = diversity_table.table(result)
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


# ---- the picture --------------------------------------------------------------------------------------------------


def draw(result: dict[str, Any]) -> bytes:
    """A PNG of six panels, three where no models were given; one colour for each set, bands are 95 % intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(result)
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(15, 4.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    for panel, place in zip(panels, axes, strict=False):
        panel(place, result)
        place.grid(alpha=0.25)
        place.spines[["top", "right"]].set_visible(False)
    for place in axes[len(panels) :]:
        place.set_visible(False)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _panels(result: dict[str, Any]) -> list[Panel]:
    first = result["sets"][result["learner"]]
    panels: list[Panel] = [_pass_at_k, _prefix_match, _scalars]
    panels += [_entropy, _autocorrelation] if "entropy" in first else []
    return [*panels, _gradients] if "gradients" in first else panels


def _coloured(result: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    return [
        (name, values, COLOURS[place % len(COLOURS)]) for place, (name, values) in enumerate(result["sets"].items())
    ]


def _line(axis: Any, x: list[float], found: dict[str, Any], colour: str, name: str, style: str = "-") -> None:
    """The known part of a curve with its band."""
    known = [place for place, value in enumerate(found["values"]) if value is not None]
    if not known:
        return
    at, value, low, high = ([column[place] for place in known] for column in (x, *(found[key] for key in KEYS)))
    marker = "o" if len(known) <= 32 else None
    axis.plot(at, value, style, color=colour, label=name, marker=marker, markersize=3, linewidth=1.6)
    axis.fill_between(at, low, high, color=colour, alpha=BAND_ALPHA, linewidth=0)


def _named(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)


def _pass_at_k(axis: Any, result: dict[str, Any]) -> None:
    for name, values, colour in _coloured(result):
        _line(axis, values["pass_at_k"]["k"], values["pass_at_k"], colour, name)
    for name, values, colour in _coloured(result):
        curve = values["pass_at_k"]["values"]
        for k in result["crossings"].get(name, {}).get("at_k", []):
            low, part = int(k), k - int(k)
            y = curve[low - 1] + part * (curve[min(low, len(curve) - 1)] - curve[low - 1])
            axis.plot([k], [y], "x", color=colour, markersize=9, markeredgewidth=2)
    _doubling(axis)
    _named(axis, f"pass@k (× crosses {result['learner']})", "k (samples)", "share of problems solved")


def _prefix_match(axis: Any, result: dict[str, Any]) -> None:
    _by_position(axis, result, "prefix_match", "positions")
    _named(axis, "Pairs that are still the same", "first t tokens", "share of pairs")


def _scalars(axis: Any, result: dict[str, Any]) -> None:
    _dots(axis, result, [(label, lambda values, key=key: values.get(key, NOTHING)) for label, key in SCALARS])
    _named(axis, f"Diversity of a problem's samples (n = {result['n']})", "low Self-BLEU: diverse", "0 to 1")


def _entropy(axis: Any, result: dict[str, Any]) -> None:
    _by_position(axis, result, "entropy_by_position", "starts")
    _named(axis, "Entropy of the next token by position", "position (token)", "nats")


def _by_position(axis: Any, result: dict[str, Any], kind: str, places: str) -> None:
    """One line a set, on an axis of doubling positions."""
    for name, values, colour in _coloured(result):
        if kind in values:
            _line(axis, values[kind][places], values[kind], colour, name)
    _doubling(axis)


def _doubling(axis: Any) -> None:
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")


def _autocorrelation(axis: Any, result: dict[str, Any]) -> None:
    for name, values, colour in _coloured(result):
        if "autocorrelation" in values:
            _line(axis, values["autocorrelation"]["lags"], values["autocorrelation"], colour, name)
            _line(axis, values["autocorrelation"]["lags"], values["autocorrelation_shuffled"], colour, "", "--")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    title = f"Autocorrelation of log p(sampler) - log p({result['learner']})"
    _named(axis, title, "lag (tokens); dashed: the same tokens in random order", "correlation")


def _gradients(axis: Any, result: dict[str, Any]) -> None:
    measures = [
        (label, lambda v, kind=kind, key=key: v["gradients"][kind][key] if "gradients" in v else NOTHING)
        for label, kind, key in GRADIENTS
    ]
    _dots(axis, result, measures)
    axis.axhline(0, color="black", linewidth=0.8)
    _named(
        axis, f"Gradients of {result['learner']} within a group", "variance over mean squared norm; pairwise cosine", ""
    )


def _dots(axis: Any, result: dict[str, Any], measures: list[tuple[str, Any]]) -> None:
    """One dot with its interval for each measure and set, side by side."""
    sets = _coloured(result)
    for place, (_, read) in enumerate(measures):
        for number, (_, values, colour) in enumerate(sets):
            found = read(values)
            if found["value"] is not None:
                x, (low, high) = place + (number - (len(sets) - 1) / 2) * 0.6 / len(sets), found["ci95"]
                axis.plot([x, x], [low, high], color=colour, linewidth=2)
                axis.plot([x], [found["value"]], "o", color=colour, markersize=6)
    axis.set_xticks(range(len(measures)), [label for label, _ in measures])
