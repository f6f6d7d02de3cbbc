"""The page of one run, of several beside one another (one colour for each run, on common axes), or of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from s2l_ext.evaluation.intervals import FEWEST
from s2l_ext.report import accuracy, cost, curriculum, curves, samples, seeds, settings
from s2l_ext.report.page import Section, page, table
from s2l_ext.report.results import set_name
from s2l_ext.report.run import KL, Run, count_steps, difference

MOST_TOLD = 3
VERDICTS = {
    "clear": "a clear difference",
    "not clear": "no clear difference",
    "too few": "too few problems differ for a verdict",
}


def sections(runs: Sequence[Run]) -> list[Section]:
    """What the page shows, in its order; parts that no run used are left out. Seeds of one configuration are told as
    one, and what is of single runs is the first seed's."""
    groups = seeds.pooled(runs)
    if seeds.are_seeds(groups):
        found = [Section("seeds", "Over seeds", seeds.figures(groups))]
        found += curves.common_sections(groups, "several_runs")
        return found + _of_each([group.runs[0] for group in groups])
    several, charts = len(runs) > 1, [*accuracy.charts(runs), *accuracy.pass_charts(runs)]
    return [
        Section("results", "Results", accuracy.tables(runs)),
        Section("held_out_accuracy", "Held-out accuracy", [*charts, *cost.curves(runs)]),
        *(curves.common_sections(runs, "several_runs") if several else curves.sections(runs[0])),
        *_of_each(runs),
    ]


def _of_each(runs: Sequence[Run]) -> list[Section]:
    """Controllers, cost, samples and configuration of every run."""
    several, own, read = len(runs) > 1, list[Section](), list[Markup]()
    for place, run in enumerate(runs, start=1):
        label, number = (f": {run.name}", f"_{place}") if several else ("", "")
        own += [replace(one, name=one.name + number, title=one.title + label) for one in curriculum.sections(run)]
        read += samples.figures(run, label)
    return [
        *own,
        Section("cost", "Cost", cost.figures(runs)),
        Section("samples", "Samples to read", read),
        Section("settings", "Configuration", settings.figures(runs)),
    ]


def run_page(runs: Sequence[Run], found: Sequence[Section]) -> str:
    """One file that loads nothing."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    return page(f"s2l report: {title}", title, lead(runs), found)


def lead(runs: Sequence[Run]) -> str:
    """What came out, in words."""
    if len(runs) == 1:
        return _lead_of_one(runs[0])
    groups = seeds.pooled(runs)
    if seeds.are_seeds(groups):
        counted = "; ".join(f"{group.name}, {len(group.runs)} seeds" for group in groups)
        return " ".join([f"{counted}.", *seeds.sentences(groups)])
    first, *others = runs
    named = "; ".join(f"{run.name}, {count_steps(run)}" for run in runs)
    told = [_against(first, other, key) for other in others for key in first.keys if other.series(key)]
    return " ".join([f"{named}.", *(told if len(told) <= MOST_TOLD else [])])


def _lead_of_one(run: Run) -> str:
    """How long it trained, what it learned, where its controllers stand."""
    parts = [f"{count_steps(run)}."]
    for key in run.keys:
        values = [value for _, value in run.series(key)]
        change = f"{values[0]:.3f} → {values[-1]:.3f}" if len(values) > 1 else f"{values[0]:.3f} (one validation)"
        parts.append(f"Held-out accuracy on {set_name(key)}: {change}.")
    return " ".join([*parts, *([curriculum.lead(run)] if run.logged(KL) or run.has_curriculum else [])])


def _against(first: Run, other: Run, key: str) -> str:
    found = difference(first, other, key)
    assert found is not None
    name = f"{other.name} minus {first.name} on {set_name(key)}: {found.value:+.3f}"
    if found.ci95 is None:
        return f"{name}, without an interval."
    low, high = found.ci95
    return f"{name}, 95 % interval {low:+.3f} to {high:+.3f} ({found.how}): {VERDICTS[found.verdict]}."


# ---- the page of the demo: that of its run, headed by what it learned -----------------------------------------------


def demo_page(summary: dict[str, Any], run: Run) -> str:
    """The whole page. ``summary`` is what ``summary.json`` holds."""
    found = sections([run])
    facts = table("What the demo did", ["", "value"], list(_facts(summary).items()), style="")
    found.insert(-3, Section("demo", "The run", [facts]))  # before cost, samples and configuration
    return page(f"s2l demo: {summary['recipe']}", headline(summary), verdict(summary), found)


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


def _facts(summary: dict[str, Any]) -> dict[str, str]:
    slots, schedule = summary["explorer_slots"], summary["explorer_slots_schedule"]
    planned = "" if schedule is None else ", as scheduled" if slots == schedule else f", scheduled: {_join(schedule)}"
    phases = ", ".join(f"{name} {seconds:.0f}" for name, seconds in summary["phase_seconds"].items())
    return {
        "recipe": summary["recipe"],
        "steps": str(summary["steps"]),
        "explorer rollouts a group, per step": (_join(slots) or "none") + planned,
        "wall clock": f"{summary['wall_seconds']:.0f} s ({phases})",
        "peak memory": f"{summary['peak_memory_gb']:.1f} GB, all processes of the run",
        "versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    }


def _join(values: list[int]) -> str:
    return " ".join(str(value) for value in values)
