"""Held-out accuracy: the table of final numbers with intervals, the curves with their bands, and pass@k."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup

from s2l_ext.report.charts import COLOURS, Line, chart, colour
from s2l_ext.report.page import describe_interval, empty, table
from s2l_ext.report.results import set_name
from s2l_ext.report.run import Run, difference

TITLE, PROBLEMS = "Held-out accuracy", "share of problems (0 to 1)"
WITHIN = (
    "All intervals are 95 %, over problems. An accuracy has Wilson's interval, or Student's t with several samples a "
    "problem. A gain has a paired bootstrap over the problems of both validations, corrected for few problems."
)
BETWEEN = (
    "A difference compares last validations. It is paired by problem where both runs left dumps of the same problems, "
    "else it treats them as two independent samples (Newcombe). No interval covers the variation between seeds."
)
NO_INTERVAL = (
    "Where there is no interval, the number of problems is not known. Set trainer.validation_data_dir, and the dumps "
    "tell it for a single validation set; without them the report counts the rows of data.val_files."
)
READING = "Should rise from its first point."
BAND = "The band is the 95 % interval over the problems of each validation on its own."
AT_LEAST_ONE = "Share of problems that at least one of k samples solves: unbiased pass@k (Chen et al. 2021)."
NO_VALIDATION = "The run logged no validation. Set trainer.test_freq and data.val_files to see held-out accuracy."
PASS_AT_K = re.compile(r"s2l/val/(.+)/pass@(\d+)")
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


def tables(runs: Sequence[Run]) -> list[Markup]:
    """Accuracies with intervals and differences from the first run; first and last values of training."""
    return [_accuracies(runs), _values(runs)]


def _accuracies(runs: Sequence[Run]) -> Markup:
    several, keys = len(runs) > 1, sorted({key for run in runs for key in run.keys})
    shown = [(place, key) for key in keys for place, run in enumerate(runs) if run.series(key)]
    if not shown:
        return empty(TITLE, NO_VALIDATION)
    head = ["validation set", "steps", "first", "last", "last minus first"]
    head += [f"minus {runs[0].name}", "interval"] if several else []
    bare = any(run.band(key) is None for run in runs for key in run.keys)
    readings = [WITHIN, *([BETWEEN] if several else []), *([NO_INTERVAL] if bare else [])]
    named = [(runs[place].name, colour(place)) for place, _ in shown] if several else []
    return table(TITLE, head, [_accuracy_cells(runs, *one) for one in shown], " ".join(readings), named)


def _accuracy_cells(runs: Sequence[Run], place: int, key: str) -> list[str]:
    run = runs[place]
    (_, before), (step, after) = (run.series(key)[index] for index in (0, -1))
    gain, gain_interval = run.gain(key)
    cells = [set_name(key), str(run.steps), f"{before:.3f}", "one validation", ""]
    if len(run.series(key)) > 1:
        last = f"{after:.3f}{describe_interval(run.interval(key, step, after))}"
        cells[-2:] = [last, f"{gain:+.3f}{describe_interval(gain_interval, '+')}"]
    if len(runs) == 1:
        return cells
    found = difference(runs[0], run, key) if place else None
    if found is None:
        return [*cells, "not in both" if place else "", ""]
    return [*cells, f"{found.value:+.3f}{describe_interval(found.ci95, '+')}", found.how or "no interval"]


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


# ---- charts -------------------------------------------------------------------------------------------------------


def charts(runs: Sequence[Run]) -> list[Markup]:
    """Accuracy with bands: of one run up to six validation sets on a chart, of several runs a chart for each set."""
    keys = sorted({key for run in runs for key in run.keys})
    if not keys:
        return [empty(TITLE, NO_VALIDATION)]
    if len(runs) > 1:
        return [_chart(f"{TITLE}, {set_name(key)}", [(run, key, run.name) for run in runs]) for key in keys]
    groups = [keys[start : start + len(COLOURS)] for start in range(0, len(keys), len(COLOURS))]
    return [_chart(TITLE, [(runs[0], key, set_name(key)) for key in group]) for group in groups]


def _chart(title: str, shown: Sequence[tuple[Run, str, str]]) -> Markup:
    lines = [Line(name, colour(place), run.series(key), run.band(key)) for place, (run, key, name) in enumerate(shown)]
    reading = f"{READING} {BAND}" if any(line.band for line in lines) else READING
    return chart(title, "accuracy (0 to 1)", lines, reading)


def pass_charts(runs: Sequence[Run]) -> list[Markup]:
    """pass@k over the validations. One run: a chart for each validation set with a line for each k and verl's best@N.
    Several: a chart for each set with its largest k."""
    found = {match.groups() for run in runs for key in run.metric_names if (match := PASS_AT_K.fullmatch(key))}
    sources = sorted({source for source, _ in found})
    return [_passes(runs, source, sorted(int(k) for own, k in found if own == source)) for source in sources]


def _passes(runs: Sequence[Run], source: str, ks: Sequence[int]) -> Markup:
    key, most = f"s2l/val/{source}/pass@", ks[-1]
    if len(runs) > 1:
        lines = [Line(run.name, colour(place), run.series(f"{key}{most}")) for place, run in enumerate(runs)]
        return chart(f"pass@{most}, {source}", PROBLEMS, lines, AT_LEAST_ONE)
    lines = [Line(f"pass@{k}", colour(place), runs[0].series(f"{key}{k}")) for place, k in enumerate(ks)]
    best = runs[0].series(f"val-core/{source}/acc/best@{most}/mean")
    lines.append(Line(f"verl's best@{most}, biased low", colour(len(COLOURS) + len(ks) - 1), best))
    return chart(f"pass@k, {source}", PROBLEMS, lines, AT_LEAST_ONE)
