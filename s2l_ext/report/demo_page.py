"""The demo's report: one HTML file that needs nothing else, readable in light and dark."""

from __future__ import annotations

import html
import re
from typing import Any

from s2l_ext.evaluation.intervals import FEWEST, mean_interval
from s2l_ext.report.charts import Line, chart
from s2l_ext.report.results import Metrics, Validation, series
from s2l_ext.report.style import document

EXAMPLES = 3
ROLES = re.compile(r"^(system|user)\n|\n?assistant\n?$")


def render(summary: dict[str, Any], lines: Metrics, validations: list[Validation]) -> str:
    """The whole page.

    Args:
        summary: what ``summary.json`` holds.
        lines: ``(step, metrics)`` of the run.
        validations: at least two, by step.
    """
    body = [
        f"<h1>{html.escape(headline(summary))}</h1>",
        f"<p class='lead'>{html.escape(verdict(summary))}</p>",
        f"<div class='charts'>{''.join(_charts(summary, lines, validations))}</div>",
        f"<h2>The run</h2><div class='scroll'><table>{table_rows(_facts(summary))}</table></div>",
        _examples(validations[0], validations[-1]),
    ]
    return document(f"s2l demo: {summary['recipe']}", "".join(body))


def headline(summary: dict[str, Any]) -> str:
    before, after = summary["val_accuracy_before"], summary["val_accuracy_after"]
    return f"Held-out accuracy {before:.3f} → {after:.3f} in {summary['steps']} steps"


def verdict(summary: dict[str, Any]) -> str:
    """One sentence; says so when the interval does not exclude zero."""
    low, high = summary["ci95"]
    text = (
        f"Gain {summary['gain']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f} ({summary['n_val']} problems, paired)."
    )
    if summary.get("verdict") == "too few":
        return f"{text} Fewer than {FEWEST} problems changed: too few for a verdict."
    if low <= 0 <= high:
        return f"{text} The interval includes 0: this run does not show that the model got better or worse."
    return text if low > 0 else f"{text} The model got worse."


def _charts(summary: dict[str, Any], lines: Metrics, validations: list[Validation]) -> list[str]:
    curve = [(float(dump.step), dump.mean) for dump in validations]
    band = [mean_interval(list(dump.accuracy.values())) or (0.0, 1.0) for dump in validations]
    share = []
    schedule, group = summary["explorer_slots_schedule"], summary["group_size"]
    if schedule and group:
        planned = [(float(step), slots / group) for step, slots in enumerate(schedule, start=1)]
        share.append(Line("schedule", "plan", planned, planned=True))
    share.append(Line("sampled by the explorer", "explorer", series(lines, "s2l/explorer/share")))
    return [
        chart(
            "Held-out accuracy, 95 % interval",
            "accuracy",
            [Line("learner", "learner", curve, band)],
            y_range=(0.0, 1.0),
        ),
        chart("Explorer's share of the rollouts", "share of rows", share, y_range=(0.0, 1.0)),
        chart("Training reward by source", "mean reward", by_source(lines, "reward_mean")),
        chart("Response length by source", "tokens", by_source(lines, "response_length_mean")),
    ]


def by_source(lines: Metrics, name: str) -> list[Line]:
    """One line each for what the learner and the explorer sampled."""
    return [Line(source, source, series(lines, f"s2l/source/{source}/{name}")) for source in ("learner", "explorer")]


def _facts(summary: dict[str, Any]) -> dict[str, str]:
    slots, schedule = summary["explorer_slots"], summary["explorer_slots_schedule"]
    planned = "" if schedule is None else ", as scheduled" if slots == schedule else f", scheduled: {_spaced(schedule)}"
    phases = ", ".join(f"{name} {seconds:.0f}" for name, seconds in summary["phase_seconds"].items())
    return {
        "recipe": summary["recipe"],
        "steps": str(summary["steps"]),
        "explorer slots per step": (_spaced(slots) or "none") + planned,
        "wall clock": f"{summary['wall_seconds']:.0f} s ({phases})",
        "peak memory": f"{summary['peak_memory_gb']:.1f} GB, all processes of the run",
        "versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    }


def _spaced(values: list[int]) -> str:
    return " ".join(str(value) for value in values)


def table_rows(facts: dict[str, str]) -> str:
    return "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items())


def _examples(before: Validation, after: Validation) -> str:
    learned = [p for p in sorted(before.accuracy) if before.accuracy[p] < after.accuracy.get(p, 0.0)][:EXAMPLES]
    if not learned:
        return ""
    cells = [[ROLES.sub("", p), before.output[p], after.output[p], after.truth[p]] for p in learned]
    rows = "".join(f"<tr>{''.join(f'<td>{_code(text)}</td>' for text in row)}</tr>" for row in cells)
    header = "<tr><th>problem</th><th>before</th><th>after</th><th>answer</th></tr>"
    return f"<h2>Held-out problems it learned to solve</h2><div class='scroll'><table>{header}{rows}</table></div>"


def _code(text: str) -> str:
    short = text.strip() if len(text) <= 400 else f"{text.strip()[:400]}…"
    return f"<code>{html.escape(short)}</code>"
