"""A study's numbers: one row an arm, with intervals over seeds, and what they allow one to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from s2l_ext.evaluation.intervals import Interval
from s2l_ext.evaluation.seeds import (
    FEWEST_SEEDS,
    Difference,
    Estimate,
    accuracy_over_seeds,
    hierarchical,
    paired,
    sentence,
)
from s2l_ext.report.cost import quantity
from s2l_ext.report.ledger import mean_of
from s2l_ext.studies.study.file import Study
from s2l_ext.studies.study.results import AFTER, Result


@dataclass(frozen=True)
class Row:
    """One arm.

    Attributes:
        by_seed: accuracy of each run that ended well.
        accuracy: over seeds; None with fewer than two.
        ci95_problems: the same mean with seeds and, inside each, problems resampled.
        difference: to the baseline, over the seeds that both have; None for the baseline.
        spent: means over seeds.
        failed: messages of runs that did not end well, by seed.
        unmatched: matched quantities in which the finished runs differ from the baseline's, with the ratio;
            None where the baseline's is 0.
        unknown: matched quantities that a finished run does not tell.
    """

    arm: str
    learning_rate: float
    by_seed: dict[int, float]
    accuracy: Estimate | None
    ci95_problems: Interval | None
    difference: Difference | None
    spent: dict[str, float | None]
    failed: dict[str, str]
    unmatched: dict[str, float | None]
    unknown: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.by_seed)

    @property
    def sentence(self) -> str:
        """What may be said of the arm beside the baseline."""
        return sentence(self.arm, self.difference) if self.difference else ""


def rows_of(study: Study, results: Mapping[str, Sequence[Result]]) -> list[Row]:
    """One row for each arm, in the file's order."""
    base = {one.seed: one for one in results[study.baseline.name] if not one.error}
    return [_row(study, arm.name, results[arm.name], base) for arm in study.arms]


def _row(study: Study, arm: str, results: Sequence[Result], base: Mapping[int, Result]) -> Row:
    good = [one for one in results if not one.error]
    table = [np.array(one.problems) for one in good]  # in the order of the problems' texts
    enough, asked = len(good) >= FEWEST_SEEDS, {one.asked for one in good}
    by_seed = {one.seed: fmean(one.problems) for one in good}
    shared = [one for one in good if one.seed in base] if arm != study.baseline.name else []
    pairs = [(by_seed[one.seed], fmean(base[one.seed].problems)) for one in shared]
    difference = paired(*map(list, zip(*pairs, strict=True))) if len(pairs) >= FEWEST_SEEDS else None
    spent = _mean_spent(good)
    return Row(
        arm,
        results[0].learning_rate,
        by_seed,
        _over([*by_seed.values()]),
        hierarchical(table, shared=len(asked) == 1 and "" not in asked) if enough else None,
        difference,
        spent,
        {str(one.seed): one.error for one in results if one.error},
        _unmatched(study, spent, _mean_spent([*base.values()])),
        tuple(name for name in _matched_after(study) if good and spent[name] is None),
    )


def _mean_spent(runs: Sequence[Result]) -> dict[str, float | None]:
    return {name: mean_of([one.spent.get(name) for one in runs]) for name in (*AFTER, "seconds")}


def _matched_after(study: Study) -> list[str]:
    return [name for name in study.block.matched if name in AFTER]


def _unmatched(
    study: Study, spent: Mapping[str, float | None], base: Mapping[str, float | None]
) -> dict[str, float | None]:
    """Ratios of the quantities that the study calls matched and that are not."""
    pairs = {name: (spent[name], base[name]) for name in _matched_after(study)}
    known = {name: (own, other) for name, (own, other) in pairs.items() if own is not None and other is not None}
    return {
        name: own / other if other else None
        for name, (own, other) in known.items()
        if abs(own - other) > study.block.tolerance * other
    }


HEAD = (
    *("arm", "learning rate", "seeds", "accuracy, 95 % over seeds", "95 % seeds and problems", "difference, paired"),
    *("effect size", "would show", "learner tokens", "FLOPs", "seconds"),
)


def cells(row: Row) -> list[str]:
    """Texts under :data:`HEAD`."""
    gap, effect = row.difference, row.difference and row.difference.effect
    failed = f", {len(row.failed)} failed" if row.failed else ""
    return [
        row.arm,
        f"{row.learning_rate:g}",
        f"{len(row.seeds)}{failed}",
        _text(row.accuracy),
        "" if row.ci95_problems is None else "{:.3f} to {:.3f}".format(*row.ci95_problems),
        gap.text("+") if gap else "",
        "" if effect is None else f"{effect:+.2f}",
        "" if gap is None or gap.detectable is None else f"{gap.detectable:.3f}",
        *(quantity(row.spent[name]) for name in ("learner_tokens", "flops", "seconds")),
    ]


def sources(study: Study, results: Mapping[str, Sequence[Result]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: each arm's accuracy on every data source, over seeds. No rows for a single source."""
    good = {arm.name: [one for one in results[arm.name] if not one.error] for arm in study.arms}
    names = sorted({name for runs in good.values() for one in runs for name in one.accuracies})
    rows = [[arm, *(_of_source(runs, name) for name in names)] for arm, runs in good.items()]
    return ["arm", *names], rows if len(names) > 1 else []


def _of_source(runs: Sequence[Result], name: str) -> str:
    """Over the seeds whose validation drew problems of it, with their number where it is not every seed's."""
    values = [fmean(one.accuracies[name]) for one in runs if name in one.accuracies]
    return _text(_over(values)) + (f", {len(values)} of {len(runs)} seeds" if len(values) < len(runs) else "")


def _over(values: Sequence[float]) -> Estimate | None:
    return accuracy_over_seeds(values) if len(values) >= FEWEST_SEEDS else None


def _text(value: Estimate | None) -> str:
    return value.text() if value else "too few seeds"


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the numbers say, arm by arm; failed runs and budgets that differ."""
    said = [row.sentence for row in rows if row.sentence]
    said += [f"{row.arm}, seed {seed}: no result ({why})." for row in rows for seed, why in row.failed.items()]
    for row in rows:
        said += [
            f"{row.arm} is not matched in {name}: "
            + ("the baseline has none." if ratio is None else f"{ratio:.2f} x the baseline's.")
            for name, ratio in row.unmatched.items()
        ]
    for name in dict.fromkeys(name for row in rows for name in row.unknown):
        arms = ", ".join(row.arm for row in rows if name in row.unknown)
        said.append(f"{name} is not known for {arms}, so matching was not checked.")
    return said


def as_json(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """For programs: the rows, by arm."""
    return {"study": study.name, "baseline": study.baseline.name, "arms": {row.arm: asdict(row) for row in rows}}
