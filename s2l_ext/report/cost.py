"""The cost of runs as tables and curves: by phase and by who did the work, learner-only and all-in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from markupsafe import Markup

from s2l_ext.report.charts import Line, chart, colour
from s2l_ext.report.ledger import BOTH, FILTER_KEY, FORWARD, MODEL_PATHS, SCORING, Ledger
from s2l_ext.report.page import empty, table
from s2l_ext.report.results import set_name
from s2l_ext.report.run import Run

ACCOUNTS = {"learner-only": False, "all-in": True}
"""By name, whether the work of explorer and teacher counts."""
FORMULA = (
    f"FLOPs are estimates: {FORWARD} × parameters for each token that a model samples or scores, {BOTH} × for each "
    "that is trained on, prompts included. Not counted: attention over long contexts, validation, repeated steps."
)
MEANING = (
    "Learner-only leaves out the work of explorer and teacher, as if it were cached and free. The paper's 0.75 × "
    "counts this way. All-in counts everything."
)
SECONDS = (
    "Seconds are wall-clock. Explorer and learner sample at once: the time of sampling is split by the generation time "
    "of their rows. A teacher's scoring happens inside training."
)
FILTERED = "Groups that algorithm.filter_groups dropped are not counted either, though they were sampled."
FLOPS, SECONDS_SO_FAR = "FLOPs so far (estimated)", "seconds of steps and validations so far"
STORED = (
    "The explorer's rows were stored before the run: their seconds are not known, and each counts whenever it is used."
)
NO_COST = "The run logged neither perf/total_num_tokens nor timing_s/step, so nothing can be counted."


def figures(runs: Sequence[Run]) -> list[Markup]:
    """Totals, and the phases of every run."""
    ledgers = [*map(Ledger, runs)]
    if not any(ledger.steps for ledger in ledgers):
        return [empty("Cost", NO_COST)]
    phases = [_phase_table(ledger, len(runs) > 1) for ledger in ledgers if ledger.steps]
    return [_total_table(ledgers), *phases]


def _total_table(ledgers: Sequence[Ledger]) -> Markup:
    """Both accounts of every run; of several with ratios to the first."""
    several, rows, runs = len(ledgers) > 1, [], []
    for place, ledger in enumerate(ledgers):
        for account, all_in in ACCOUNTS.items():
            own, base = (vars(one.totals(all_in)) for one in (ledger, ledgers[0]))
            pairs = [(quantity(value), ratio(value, base[name])) for name, value in own.items()]
            rows.append([account, *(cell for pair in pairs for cell in pair[: 2 if several else 1])])
            runs.append((ledger.run.name, colour(place)))
    columns = ("tokens of rollouts", "FLOPs", "seconds", "accelerator seconds")
    head = ["account", *(cell for name in columns for cell in ([name, "ratio"] if several else [name]))]
    to_first = f"Ratios are to {ledgers[0].run.name}." if several else ""
    filters = any(ledger.run.setting(FILTER_KEY, False) for ledger in ledgers)
    readings = filter(None, [MEANING, FORMULA, FILTERED * filters, to_first, *map(_explain_unknown_sizes, ledgers)])
    return table("Cost of the training steps", head, rows, " ".join(readings), runs if several else ())


def _explain_unknown_sizes(ledger: Ledger) -> str:
    """Why a run has no FLOPs."""
    if not ledger.unknown_sizes:
        return ""
    named = ", ".join(f"{who} ({ledger.run.setting(MODEL_PATHS[who], 'not named')})" for who in ledger.unknown_sizes)
    return (
        f"FLOPs of {ledger.run.name} are not known: the parameters of {named} are not in plan.json, in an existing "
        "model folder, or in the name."
    )


def quantity(value: float | None) -> str:
    """Whole from a thousand, ``1.23e+12`` from a thousand million; a dash for what is not known."""
    if value is None:
        return "—"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def ratio(value: float | None, to: float | None) -> str:
    """``0.750 ×``; a dash where one is not known or the second is 0."""
    return "—" if value is None or not to else f"{value / to:.3f} ×"


def _phase_table(ledger: Ledger, several: bool) -> Markup:
    total = ledger.totals(all_in=True).flops
    rows = []
    for (phase, who), amount in ledger.entries.items():
        counted = [quantity(amount.tokens), quantity(amount.flops)] if amount.tokens else ["", ""]
        share = f"{amount.flops / total:.1%}" if total and amount.flops else ""
        seconds = "" if phase == SCORING else quantity(amount.seconds)
        rows.append([phase, who, *counted, share, seconds])
    at_work = {who for _, who in ledger.entries}
    sizes = [f"{who} {size:,}" for who, size in ledger.sizes.items() if size and who in at_work]
    readings = [SECONDS, STORED if ledger.has_stored_rollouts else ""]
    readings += [f"Parameters: {', '.join(sizes)}."] if sizes else []
    reading = " ".join(filter(None, readings))
    title = f"Cost by phase: {ledger.run.name}" if several else "Cost by phase"
    return table(title, ["phase", "by", "tokens", "FLOPs", "of all FLOPs", "seconds"], rows, reading)


def curves(runs: Sequence[Run]) -> list[Markup]:
    """Accuracy by compute, where sizes and validations are known. One run that had help: both accounts in a chart;
    several: a chart for each account, and one by wall-clock time."""
    ledgers = [*map(Ledger, runs)]
    keys = sorted({key for run in runs for key in run.keys})
    if not keys:
        return []
    title = f"Accuracy on {set_name(keys[0])}"

    def line(name: str, place: int, ledger: Ledger, part: Literal["flops", "seconds"], all_in: bool = True) -> Line:
        spent = ledger.spent_until(part, all_in)
        known = [(spent[step], accuracy) for step, accuracy in ledger.run.series(keys[0]) if step in spent]
        return Line(name, colour(place), known)

    if len(runs) == 1:
        lines = [line(name, n, ledgers[0], "flops", all_in) for n, (name, all_in) in enumerate(ACCOUNTS.items())]
        return _chart(f"{title} against compute", lines if ledgers[0].had_help else lines[1:], FLOPS)
    found = []
    for name, all_in in ACCOUNTS.items():
        lines = [line(one.run.name, n, one, "flops", all_in) for n, one in enumerate(ledgers)]
        found += _chart(f"{title} against compute, {name}", lines, FLOPS)
    lines = [line(one.run.name, n, one, "seconds") for n, one in enumerate(ledgers)]
    return found + _chart(f"{title} against wall-clock time", lines, SECONDS_SO_FAR)


def _chart(title: str, lines: list[Line], x_name: str) -> list[Markup]:
    """Empty where not one line has points after the start."""
    if not any(x > 0 for line in lines for x, _ in line.points):
        return []
    reading = "Higher at the same place is better for the same cost; further left is cheaper for the same accuracy."
    return [chart(title, "accuracy (0 to 1)", lines, reading, x_name=x_name)]
