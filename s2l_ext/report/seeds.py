"""Runs that are seeds of one configuration, drawn and told as one: means and 95 % intervals over seeds."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from markupsafe import Markup

from s2l_ext.config.verl_settings import flattened
from s2l_ext.evaluation.intervals import Interval
from s2l_ext.evaluation.seeds import (
    FEWEST_SEEDS,
    Difference,
    accuracy_over_seeds,
    hierarchical,
    independent,
    over_seeds,
    paired,
    sentence,
)
from s2l_ext.report.charts import Line, chart, colour
from s2l_ext.report.cost import quantity
from s2l_ext.report.ledger import Ledger, mean_of
from s2l_ext.report.page import describe_interval, table
from s2l_ext.report.results import is_accuracy, joined, set_name
from s2l_ext.report.run import Run

ELSEWHERE = ("trainer.", "ray_kwargs.", "transfer_queue.")
"""Settings that say where and how a run is run, beside :data:`COUNTED`."""
COUNTED = ("trainer.total_training_steps", "trainer.total_epochs", "trainer.critic_warmup", "trainer.v1.")
"""Beginnings of the keys among them that change what is learned."""
SEED_AT_END = re.compile(r"[-_./]*(seed)?[-_]?\d+$")
READING = (
    "Means over runs of one configuration that differ in their seed; intervals are at 95 %, Student's t over seeds. "
    "Seeds and problems: a bootstrap that draws both."
)
BAND = "The line is the mean over seeds, the band its 95 % interval (Student's t)."


@dataclass(frozen=True, eq=False)
class Seeds:
    """One configuration: one run, or several with different seeds. A line of a chart like a run."""

    name: str
    runs: tuple[Run, ...]

    def series(self, key: str) -> list[tuple[int, float]]:
        """Mean at the steps that every run logged."""
        return [(step, fmean(values)) for step, values in self.values(key)]

    def band(self, key: str) -> list[Interval] | None:
        """None for one run: its problems tell nothing of another seed."""
        over = accuracy_over_seeds if is_accuracy(key) else over_seeds
        return [over(values).ci95 for _, values in self.values(key)] if len(self.runs) >= FEWEST_SEEDS else None

    def values(self, key: str) -> list[tuple[int, list[float]]]:
        """By step that every run logged, the runs' values."""
        return joined([one.series(key) for one in self.runs])

    @cached_property
    def keys(self) -> list[str]:
        shared = set(self.runs[0].keys).intersection(*(one.keys for one in self.runs[1:]))
        return sorted(key for key in shared if self.values(key))

    def ci95_problems(self, key: str) -> Interval | None:
        """Of the last validation, seeds and their problems resampled; None where dumps do not tell the problems."""
        step = self.values(key)[-1][0]
        tables = [one.problems(key, step) for one in self.runs]
        known = [table for table in tables if table is not None]
        if len(known) < max(len(tables), FEWEST_SEEDS):
            return None
        shared = len({tuple(table.index) for table in known}) == 1
        return hierarchical([table["accuracy"].to_numpy() for table in known], shared=shared)


def seed_of(run: Run) -> str:
    """Every seed of the configuration, as text."""
    return str({key: value for key, value in flattened(run.config).items() if _is_seed(key)})


def pooled(runs: Sequence[Run]) -> list[Seeds]:
    """The runs by configuration, in the order of the first of each; alone where a configuration or its seed repeats
    nothing, or a run left no configuration."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for place, one in enumerate(runs):
        groups[_kept(one.config) if one.config else str(place)].append(one)
    found: list[tuple[Run, ...]] = []
    for group in groups.values():
        twice = max(Counter(map(seed_of, group)).values()) > 1  # the same run again is no other seed
        found += [(one,) for one in group] if twice else [tuple(group)]
    found.sort(key=lambda group: runs.index(group[0]))
    names = [_name(group) for group in found]
    several = {name for name, count in Counter(names).items() if count > 1}
    return [Seeds(group[0].name if name in several else name, group) for name, group in zip(names, found, strict=True)]


def are_seeds(groups: Sequence[Seeds]) -> bool:
    return any(len(group.runs) > 1 for group in groups)


def _kept(config: dict[str, Any]) -> str:
    flat = flattened(config)
    kept = {k: v for k, v in flat.items() if not _is_seed(k) and (k.startswith(COUNTED) or not k.startswith(ELSEWHERE))}
    return str(sorted(kept.items()))


def _is_seed(key: str) -> bool:
    return key.endswith((".seed", "_seed"))


def _name(group: Sequence[Run]) -> str:
    """``grpo`` of ``grpo/seed1`` and ``grpo/seed2``; the first run's name where the runs are named otherwise."""
    first = group[0].name
    without = {SEED_AT_END.sub("", one.name) for one in group}
    return without.pop() if len(without) == 1 and all(without) else first


# ---- tables, charts, sentences -------------------------------------------------------------------------------------


def difference(first: Seeds, other: Seeds, key: str) -> Difference | None:
    """Other minus first at the last validation that every run of a configuration has, as in the table: paired over the
    seeds that both have, else Welch's; None for one seed."""
    if key not in first.keys or key not in other.keys or min(len(first.runs), len(other.runs)) < FEWEST_SEEDS:
        return None
    own, base = (side.values(key)[-1][1] for side in (other, first))
    for every in (True, False):
        named = [[*map(seed_of, side.runs)] if every else _data_seeds(side) for side in (other, first)]
        of_own, of_base = (dict(zip(*both, strict=False)) for both in zip(named, (own, base), strict=True))
        pairs = [(value, of_base[seed]) for seed, value in of_own.items() if seed in of_base]
        if len(pairs) >= FEWEST_SEEDS:
            return paired(*map(list, zip(*pairs, strict=True)))
    return independent(own, base)


def _data_seeds(side: Seeds) -> list[str]:
    """Those of the data alone, which order the prompts; none where they do not tell the runs apart."""
    found = [one.setting("data.seed") for one in side.runs]
    return [str(seed) for seed in found] if None not in found and len(set(found)) == len(found) else []


def figures(groups: Sequence[Seeds]) -> list[Markup]:
    """The table, and a chart for each validation set."""
    keys = sorted({key for group in groups for key in group.keys})
    head = ["configuration", "validation set", "seeds", "step", "accuracy", "seeds and problems"]
    head += [f"minus {groups[0].name}", "would show", "FLOPs", "seconds"]
    rows = [_cells(groups, group, key) for key in keys for group in groups if key in group.keys]
    shown = table("Held-out accuracy at the end", head, rows, READING)
    return [shown, *(_chart(groups, key) for key in keys)]


def _cells(groups: Sequence[Seeds], group: Seeds, key: str) -> list[str]:
    step, values = group.values(key)[-1]
    gap = difference(groups[0], group, key) if group is not groups[0] else None
    over = accuracy_over_seeds(values).ci95 if len(values) >= FEWEST_SEEDS else None
    inside = describe_interval(group.ci95_problems(key)).strip(" ()")
    totals = [Ledger(one).totals(all_in=True) for one in group.runs]
    return [
        *(group.name, set_name(key), str(len(values)), str(step)),
        *(f"{fmean(values):.3f}{describe_interval(over)}", inside),
        gap.text("+", more=f", {gap.how}") if gap else "",
        "" if gap is None or gap.detectable is None else f"{gap.detectable:.3f}",
        *(quantity(mean_of([getattr(one, name) for one in totals])) for name in ("flops", "seconds")),
    ]


def _chart(groups: Sequence[Seeds], key: str) -> Markup:
    lines = [Line(g.name, colour(n), g.series(key), g.band(key)) for n, g in enumerate(groups) if key in g.keys]
    return chart(f"Held-out accuracy, {set_name(key)}", "accuracy (0 to 1)", lines, BAND)


def sentences(groups: Sequence[Seeds]) -> list[str]:
    """What may be said of every configuration beside the first."""
    found = []
    for group in groups[1:]:
        for key in group.keys:
            gap = difference(groups[0], group, key)
            if gap is not None:
                own, base = (f"step {side.values(key)[-1][0]}" for side in (group, groups[0]))
                who = f"{group.name} on {set_name(key)}" + (f" at {own}" if own != base else "")
                beside = groups[0].name + (f" at {base}" if own != base else "")
                found.append(sentence(who, gap, beside, gap.how))
    return found


def as_json(groups: Sequence[Seeds]) -> list[dict[str, Any]]:
    """For programs: the numbers of the table."""
    found = []
    for group in groups:
        accuracy: dict[str, Any] = {}
        for key in group.keys:
            (step, values), gap = group.values(key)[-1], difference(groups[0], group, key)
            over = vars(accuracy_over_seeds(values)) if len(values) >= FEWEST_SEEDS else {"mean": fmean(values)}
            accuracy[key] = over | {"step": step, "ci95_problems": group.ci95_problems(key)}
            if gap is not None and group is not groups[0]:
                accuracy[key]["difference"] = vars(gap)
        found.append({"name": group.name, "runs": [one.name for one in group.runs], "accuracy": accuracy})
    return found
