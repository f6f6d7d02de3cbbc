"""Held-out accuracy: the table of final numbers with intervals, the curves with their bands, and pass@k."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from s2l_ext.evaluation.benchmarks import GROUP_COLUMNS, groups_of
from s2l_ext.evaluation.intervals import mean_interval
from s2l_ext.evaluation.metrics import numbers_first
from s2l_ext.report.charts import COLOURS, Line, chart, colour
from s2l_ext.report.held_out import NO_INTERVAL, Difference, HeldOut, difference, set_name
from s2l_ext.report.page import describe_interval, empty, table
from s2l_ext.report.run import Run

TITLE, PROBLEMS = "Held-out accuracy", "share of problems (0 to 1)"
WITHIN = (
    "All intervals are 95 %, over problems. An accuracy has Wilson's interval, or Student's t with several samples a "
    "problem. A gain has a paired bootstrap over the problems of both validations, corrected for few problems."
)
BETWEEN = (
    "A difference compares last validations. It is paired by problem where both runs left dumps of the same problems, "
    "else it treats them as two independent samples (Newcombe). No interval covers the variation between seeds."
)
READING = "Should rise from its first point."
BAND = "The band is the 95 % interval over the problems of each validation on its own."
AT_LEAST_ONE = "Share of problems that at least one of k samples solves: unbiased pass@k (Chen et al. 2021)."
NO_VALIDATION = "The run logged no validation. Set trainer.test_freq and data.val_files to see held-out accuracy."
OF_VALIDATION = "s2l/val/"
MOST_PAIRS = 4_000_000
"""Prompts of a dump times rows of the files: which row a prompt is, is found by its text."""
OF_GROUPS = (
    "First and last validation, each over the problems of one group, with 95 % intervals over problems. A problem "
    "without a group, or whose text two rows of the files have, is left out."
)
VALUES = {
    "critic/score/mean": "training reward",
    "response_length/mean": "response length, tokens",
    "actor/entropy": "entropy, nats",
    "s2l/explorer/fraction": "explorer's share",
    "s2l/guidance/length": "guidance length, tokens",
    "s2l/kl/beta": "KL coefficient",
    "s2l/distill/forward_kl": "forward KL, nats per token",
    "s2l/distill/reverse_kl": "reverse KL, nats per token",
}

# ---- tables -------------------------------------------------------------------------------------------------------


def tables(runs: Sequence[HeldOut]) -> list[Markup]:
    """Accuracies with intervals and differences from the first run; first and last values of training; accuracies by
    tier and level, where dumps and validation files tell them."""
    found = [(held_out, groups_of_prompts(held_out)) for held_out in runs if held_out.dumps]
    by_group = [_group_table(found, column, len(runs) > 1) for column in GROUP_COLUMNS]
    values = _values([held_out.run for held_out in runs])
    return [_accuracies(runs), values, *(figure for figure in by_group if figure)]


def _accuracies(runs: Sequence[HeldOut]) -> Markup:
    several, keys = len(runs) > 1, sorted({key for held_out in runs for key in held_out.keys})
    shown = [(place, key) for key in keys for place, held_out in enumerate(runs) if held_out.run.series(key)]
    if not shown:
        return empty(TITLE, NO_VALIDATION)
    head = ["validation set", "steps", "first", "last", "last minus first"]
    head += [f"minus {runs[0].run.name}", "interval"] if several else []
    bare = any(held_out.band(key) is None for held_out in runs for key in held_out.keys)
    readings = [WITHIN, *([BETWEEN] if several else []), *([NO_INTERVAL] if bare else [])]
    named = [(runs[place].run.name, colour(place)) for place, _ in shown] if several else []
    return table(TITLE, head, [_accuracy_cells(runs, *one) for one in shown], " ".join(readings), named)


def _accuracy_cells(runs: Sequence[HeldOut], place: int, key: str) -> list[str]:
    held_out = runs[place]
    (_, before), (step, after) = (held_out.run.series(key)[index] for index in (0, -1))
    gain, gain_interval = held_out.gain(key)
    cells = [set_name(key), str(held_out.run.steps), f"{before:.3f}", "one validation", ""]
    if len(held_out.run.series(key)) > 1:
        last = f"{after:.3f}{describe_interval(held_out.interval(key, step, after))}"
        cells[-2:] = [last, f"{gain:+.3f}{describe_interval(gain_interval, '+')}"]
    if len(runs) == 1:
        return cells
    return [*cells, *_difference_cells(difference(runs[0], held_out, key) if place else None, place)]


def _difference_cells(found: Difference | None, place: int) -> list[str]:
    if found is None:
        return ["not in both" if place else "", ""]
    return [f"{found.value:+.3f}{describe_interval(found.ci95, '+')}", found.how or "no interval"]


def _values(runs: Sequence[Run]) -> Markup:
    logged = [(key, name) for key, name in VALUES.items() if any(run.series(key) for run in runs)]
    if not logged:
        return empty("First and last values", "The run logged none of the values that this table shows.")
    names = [run.name for run in runs] if len(runs) > 1 else ["value"]
    rows = [[name, *(_first_and_last(run.series(key)) for run in runs)] for key, name in logged]
    return table("First and last values of training", ["", *names], rows)


def _first_and_last(values: list[tuple[int, float]]) -> str:
    if not values:
        return ""
    (first, before), (last, after) = values[0], values[-1]
    return f"{before:.4g} (step {first})" + ("" if first == last else f" → {after:.4g} (step {last})")


# ---- by tier and level --------------------------------------------------------------------------------------------


def _group_table(
    found: Sequence[tuple[HeldOut, dict[str, dict[str, str]]]], column: str, several: bool
) -> Markup | None:
    """First and last validation by one column; None where no problem has it."""
    rows, runs = [], []
    for place, (held_out, known) in enumerate(found):
        dumps = [held_out.accuracies(step) for step in (min(held_out.dumps), max(held_out.dumps))]
        names = {group[column] for group in known.values() if column in group}
        for name in sorted(names, key=numbers_first):
            prompts = [prompt for prompt, group in known.items() if group.get(column) == name]
            rows.append([name, str(len(prompts)), *(_describe_mean(dump, prompts) for dump in dumps)])
            runs.append((held_out.run.name, colour(place)))
    head = [column, "problems", "first", "last"]
    return table(f"{TITLE} by {column}", head, rows, OF_GROUPS, runs if several else ()) if rows else None


def groups_of_prompts(held_out: HeldOut) -> dict[str, dict[str, str]]:
    """By prompt of the last dump that is the run's own, its tier and level."""
    prompts, rows = held_out.accuracies(max(held_out.dumps)), _groups_by_text(held_out)
    if not rows or len(rows) * len(prompts) > MOST_PAIRS:
        return {}
    found = {}
    for prompt in prompts:
        inside = [text for text in rows if text in prompt]
        if inside:
            found[prompt] = rows[max(inside, key=len)]
    return found


def _groups_by_text(held_out: HeldOut) -> dict[str, dict[str, str]]:
    """Groups by the text of a row's last message; a text of two rows with other groups has none."""
    rows: dict[str, dict[str, str]] = {}
    for file in filter(None, held_out.validation_files):
        for text, group in _read_groups(file):
            rows[text] = group if rows.get(text, group) == group else {}
    return rows if any(rows.values()) else {}


def _read_groups(file: Path) -> list[tuple[str, dict[str, str]]]:
    try:
        names = pq.read_schema(file).names
        wanted = [name for name in ("prompt", "extra_info", *GROUP_COLUMNS) if name in names]
        return [_text_and_group(row) for row in pq.read_table(file, columns=wanted).to_pylist()]
    except (OSError, KeyError, TypeError, IndexError, pa.ArrowException):
        return []


def _text_and_group(row: dict[str, Any]) -> tuple[str, dict[str, str]]:
    return str(row["prompt"][-1]["content"]), {**groups_of(row.get("extra_info") or {}), **groups_of(row)}


def _describe_mean(accuracies: dict[str, float], prompts: Sequence[str]) -> str:
    values = [accuracies[prompt] for prompt in prompts if prompt in accuracies]
    return f"{sum(values) / len(values):.3f}{describe_interval(mean_interval(values))}" if values else "—"


# ---- charts -------------------------------------------------------------------------------------------------------


def charts(runs: Sequence[HeldOut]) -> list[Markup]:
    """Accuracy with bands: of one run up to six validation sets on a chart, of several runs a chart for each set."""
    keys = sorted({key for held_out in runs for key in held_out.keys})
    if not keys:
        return [empty(TITLE, NO_VALIDATION)]
    if len(runs) > 1:
        return [
            _chart(f"{TITLE}, {set_name(key)}", [(held_out, key, held_out.run.name) for held_out in runs])
            for key in keys
        ]
    groups = [keys[start : start + len(COLOURS)] for start in range(0, len(keys), len(COLOURS))]
    return [_chart(TITLE, [(runs[0], key, set_name(key)) for key in group]) for group in groups]


def _chart(title: str, shown: Sequence[tuple[HeldOut, str, str]]) -> Markup:
    lines = [
        Line(name, colour(place), held_out.run.series(key), held_out.band(key))
        for place, (held_out, key, name) in enumerate(shown)
    ]
    reading = f"{READING} {BAND}" if any(line.band for line in lines) else READING
    return chart(title, "accuracy (0 to 1)", lines, reading)


def pass_charts(runs: Sequence[Run]) -> list[Markup]:
    """pass@k over the validations. One run: a chart for each validation set with a line for each k and verl's best@N.
    Several: a chart for each set with its largest k."""
    sources: dict[str, set[int]] = {}
    for source, k in (found for run in runs for found in _pass_keys(run)):
        sources.setdefault(source, set()).add(k)
    drawn = _passes_of_one if len(runs) == 1 else _passes_of_many
    return [drawn(runs, source, sorted(ks)) for source, ks in sorted(sources.items())]


def _pass_keys(run: Run) -> list[tuple[str, int]]:
    """Data source and k of every ``s2l/val/<source>/pass@k``."""
    named = sorted({key for _, data in run.metrics for key in data if key.startswith(OF_VALIDATION)})
    parts = [key.removeprefix(OF_VALIDATION).rsplit("/pass@", 1) for key in named]
    return [(source, int(k)) for source, k in (part for part in parts if len(part) == 2) if k.isdecimal()]


def _passes_of_many(runs: Sequence[Run], source: str, ks: Sequence[int]) -> Markup:
    key = f"{OF_VALIDATION}{source}/pass@{ks[-1]}"
    lines = [Line(run.name, colour(place), run.series(key)) for place, run in enumerate(runs)]
    return chart(f"pass@{ks[-1]}, {source}", PROBLEMS, lines, AT_LEAST_ONE)


def _passes_of_one(runs: Sequence[Run], source: str, ks: Sequence[int]) -> Markup:
    (run,) = runs
    lines = [Line(f"pass@{k}", colour(n), run.series(f"{OF_VALIDATION}{source}/pass@{k}")) for n, k in enumerate(ks)]
    best = run.series(f"val-core/{source}/acc/best@{ks[-1]}/mean")
    lines.append(Line(f"verl's best@{ks[-1]}, biased low", colour(len(COLOURS) + len(ks) - 1), best))
    return chart(f"pass@k, {source}", PROBLEMS, lines, AT_LEAST_ONE)
