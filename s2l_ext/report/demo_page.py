"""The demo's page: the page of its run, headed by what it learned."""

from __future__ import annotations

from typing import Any

from s2l_ext.evaluation.intervals import FEWEST
from s2l_ext.report.held_out import HeldOut
from s2l_ext.report.overview import sections
from s2l_ext.report.page import Section, page, table
from s2l_ext.report.run import Run


def render(summary: dict[str, Any], run: Run) -> str:
    """The whole page. ``summary`` is what ``summary.json`` holds."""
    found = sections([HeldOut(run)])
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
