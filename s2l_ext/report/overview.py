"""The page of one run, or of several beside one another: one colour for each run, on common axes."""

from __future__ import annotations

from collections.abc import Sequence

from s2l_ext.report import accuracy, cost, curriculum, curves, groups, samples, settings
from s2l_ext.report.held_out import HeldOut, difference, set_name
from s2l_ext.report.page import Section, page
from s2l_ext.report.run import count_steps

MOST_TOLD = 3
VERDICTS = {
    "clear": "a clear difference",
    "not clear": "no clear difference",
    "too few": "too few problems differ for a verdict",
}


def sections(runs: Sequence[HeldOut]) -> list[Section]:
    """What the page shows, in its order; parts that no run used are left out."""
    several, found = len(runs) > 1, [held_out.run for held_out in runs]
    labels = [f": {run.name}" if several else "" for run in found]
    charts = [*accuracy.charts(runs), *accuracy.pass_charts(found), *cost.curves(runs)]
    read = [figure for one in zip(runs, labels, strict=True) for figure in samples.figures(*one)]
    return [
        Section("results", "Results", [*accuracy.tables(runs), *groups.figures(runs)]),
        Section("held_out_accuracy", "Held-out accuracy", charts),
        *(curves.common_sections(found, "several_runs") if several else curves.sections(found[0])),
        *(
            section
            for place, run in enumerate(found)
            for section in curriculum.sections(run, labels[place], f"_{place + 1}" if several else "")
        ),
        Section("cost", "Cost", cost.figures(runs)),
        Section("samples", "Samples to read", read),
        Section("settings", "Configuration", settings.figures(found)),
    ]


def run_page(runs: Sequence[HeldOut], found: Sequence[Section]) -> str:
    """One file that loads nothing."""
    title = runs[0].run.name if len(runs) == 1 else f"{len(runs)} runs compared"
    return page(f"s2l report: {title}", title, lead(runs), found)


def lead(runs: Sequence[HeldOut]) -> str:
    """What came out, in words."""
    if len(runs) == 1:
        return _lead_of_one(runs[0])
    first, *others = runs
    named = "; ".join(f"{held_out.run.name}, {count_steps(held_out.run)}" for held_out in runs)
    told = [_against(first, other, key) for other in others for key in first.keys if other.run.series(key)]
    return " ".join([f"{named}.", *(told if len(told) <= MOST_TOLD else [])])


def _lead_of_one(held_out: HeldOut) -> str:
    """How long it trained, what it learned, where its controllers stand."""
    run = held_out.run
    parts = [f"{count_steps(run)}."]
    for key in held_out.keys:
        values = [value for _, value in run.series(key)]
        change = f"{values[0]:.3f} → {values[-1]:.3f}" if len(values) > 1 else f"{values[0]:.3f} (one validation)"
        parts.append(f"Held-out accuracy on {set_name(key)}: {change}.")
    return " ".join([*parts, *([curriculum.lead(run)] if run.has_kl or run.has_curriculum else [])])


def _against(first: HeldOut, other: HeldOut, key: str) -> str:
    found = difference(first, other, key)
    assert found is not None
    name = f"{other.run.name} minus {first.run.name} on {set_name(key)}: {found.value:+.3f}"
    if found.ci95 is None:
        return f"{name}, without an interval."
    low, high = found.ci95
    return f"{name}, 95 % interval {low:+.3f} to {high:+.3f} ({found.how}): {VERDICTS[found.verdict]}."
