"""The table of final numbers: each run's validations with intervals, and its distance from the first run."""

from __future__ import annotations

from collections.abc import Sequence

from s2l_ext.report.charts import empty
from s2l_ext.report.curves import NO_VALIDATION, colour
from s2l_ext.report.held_out import NO_INTERVAL, Difference, HeldOut, Interval, set_name
from s2l_ext.report.run import Run
from s2l_ext.report.tables import table

WITHIN = (
    "Intervals are at 95 %, over problems: of one accuracy Wilson's (with several samples a problem, Student's t), "
    "of a gain a paired bootstrap, corrected for few problems, over those that both validations hold."
)
BETWEEN = (
    "A difference is last minus last: paired by problem where both runs left dumps of the same problems, else as of "
    "two independent samples (Newcombe). No interval here speaks of another seed: each is over problems."
)
VALUES = {
    "critic/score/mean": "training reward",
    "response_length/mean": "response length, tokens",
    "actor/entropy": "entropy, nats",
    "s2l/explorer/share": "explorer's share",
    "s2l/guidance/length": "guidance length, tokens",
    "s2l/kl/beta": "KL coefficient",
    "s2l/distill/forward_kl": "forward KL, nats per token",
    "s2l/distill/reverse_kl": "reverse KL, nats per token",
}


def figures(runs: Sequence[HeldOut]) -> list[str]:
    return [_accuracies(runs), _values([held_out.run for held_out in runs])]


def _accuracies(runs: Sequence[HeldOut]) -> str:
    several = len(runs) > 1
    rows, colours = [], []
    for key in sorted({key for held_out in runs for key in held_out.keys}):
        for place, held_out in enumerate(runs):
            if held_out.run.series(key):
                rows.append(_row(runs, place, key))
                colours.append(colour(place) if several else "")
    if not rows:
        return empty("Held-out accuracy", NO_VALIDATION)
    head = [*(["run"] if several else []), "validation set", "steps", "first", "last", "last minus first"]
    head += [f"minus {runs[0].run.name}", "interval"] if several else []
    readings = [WITHIN, BETWEEN] if several else [WITHIN]
    bare = any(held_out.band(key) is None for held_out in runs for key in held_out.keys)
    return table("Held-out accuracy", head, rows, " ".join([*readings, *([NO_INTERVAL] if bare else [])]), colours)


def _row(runs: Sequence[HeldOut], place: int, key: str) -> list[str]:
    held_out = runs[place]
    (_, before), (step, after) = (held_out.run.series(key)[index] for index in (0, -1))
    gain, gain_interval = held_out.gain(key)
    one = len(held_out.run.series(key)) == 1
    cells = [
        set_name(key),
        str(held_out.run.steps),
        f"{before:.3f}",
        "one validation" if one else f"{after:.3f}{_of(held_out.interval(key, step, after))}",
        "" if one else f"{gain:+.3f}{_of(gain_interval, '+')}",
    ]
    if len(runs) == 1:
        return cells
    return [held_out.run.name, *cells, *_difference(held_out.minus(runs[0], key) if place else None, place)]


def _difference(found: Difference | None, place: int) -> list[str]:
    if found is None:
        return ["not in both" if place else "", ""]
    return [f"{found.value:+.3f}{_of(found.ci95, '+')}", found.how or "no interval"]


def _of(interval: Interval | None, sign: str = "") -> str:
    return "" if interval is None else f" ({interval[0]:{sign}.3f} to {interval[1]:{sign}.3f})"


def _values(runs: Sequence[Run]) -> str:
    rows = [
        [name, *(_first_and_last(run.series(key)) for run in runs)]
        for key, name in VALUES.items()
        if any(run.series(key) for run in runs)
    ]
    if not rows:
        return empty("First and last values", "The run logged none of the values that this table shows.")
    names = [run.name for run in runs] if len(runs) > 1 else ["value"]
    return table("First and last values of training", ["", *names], rows)


def _first_and_last(values: list[tuple[int, float]]) -> str:
    if not values:
        return ""
    (first, before), (last, after) = values[0], values[-1]
    return f"{before:.4g} (step {first})" + ("" if first == last else f" → {after:.4g} (step {last})")
