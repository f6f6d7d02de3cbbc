"""The page of one run, or of several beside one another: one colour for each run, on common axes."""

from __future__ import annotations

import html
from collections.abc import Sequence

from s2l_ext.report import cost, curriculum, groups, results_table, samples, settings, single
from s2l_ext.report.curves import CONTROLLERS, SOURCE_CURVES, TRAINING, accuracy_charts, overlay, pass_charts
from s2l_ext.report.held_out import HeldOut, set_name
from s2l_ext.report.run import Run, count_steps
from s2l_ext.report.style import Section, contents, document

MOST_TOLD = 3


def sections(runs: Sequence[HeldOut]) -> list[Section]:
    """What the page shows, in its order; parts that no run used are left out."""
    several = len(runs) > 1
    charts = [*accuracy_charts(runs), *pass_charts([held_out.run for held_out in runs]), *cost.curves(runs)]
    found = [
        Section("results", "Results", [*results_table.figures(runs), *groups.figures(runs)]),
        Section("held_out_accuracy", "Held-out accuracy", charts),
        *(_overlays([held_out.run for held_out in runs]) if several else single.sections(runs[0].run)),
    ]
    for place, held_out in enumerate(runs, start=1):
        found += curriculum.sections(held_out.run, *((f": {held_out.run.name}", f"_{place}") if several else ()))
    read = [
        figure for held_out in runs for figure in samples.figures(held_out, f": {held_out.run.name}" if several else "")
    ]
    return [
        *found,
        Section("cost", "Cost", cost.figures(runs)),
        Section("samples", "Samples to read", read),
        Section("settings", "Configuration", settings.figures([held_out.run for held_out in runs])),
    ]


def _overlays(runs: Sequence[Run]) -> list[Section]:
    groups = {"training": ("Training", TRAINING), "sources": ("By source", SOURCE_CURVES)}
    groups["controllers"] = ("Controllers", CONTROLLERS)
    found = [
        Section(name, title, [overlay(runs, curve) for curve in curves if any(run.series(curve.key) for run in runs)])
        for name, (title, curves) in groups.items()
    ]
    return [section for section in found if section.figures]


def page(runs: Sequence[HeldOut], found: Sequence[Section]) -> str:
    """One file that loads nothing."""
    title = runs[0].run.name if len(runs) == 1 else f"{len(runs)} runs compared"
    head = f"<h1>{html.escape(title)}</h1><p class='lead'>{html.escape(lead(runs))}</p>{contents(found)}"
    return document(f"s2l report: {title}", head + "".join(section.html() for section in found))


def lead(runs: Sequence[HeldOut]) -> str:
    """What came out, in words."""
    if len(runs) == 1:
        return single.lead(runs[0])
    first, *others = runs
    named = "; ".join(f"{held_out.run.name}, {count_steps(held_out.run)}" for held_out in runs)
    told = [_against(first, other, key) for other in others for key in first.keys if other.run.series(key)]
    return " ".join([f"{named}.", *(told if len(told) <= MOST_TOLD else [])])


VERDICTS = {
    "clear": "a clear difference",
    "not clear": "no clear difference",
    "too few": "too few problems differ for a verdict",
}


def _against(first: HeldOut, other: HeldOut, key: str) -> str:
    found = other.minus(first, key)
    assert found is not None
    name = f"{other.run.name} minus {first.run.name} on {set_name(key)}: {found.value:+.3f}"
    if found.ci95 is None:
        return f"{name}, without an interval."
    low, high = found.ci95
    clear = VERDICTS[found.verdict]
    return f"{name}, 95 % interval {low:+.3f} to {high:+.3f} ({found.how}): {clear}."
