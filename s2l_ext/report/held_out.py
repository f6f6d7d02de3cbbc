"""Held-out accuracy of a run with 95 % intervals, and how two runs differ on the same problems."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ext.evaluation.intervals import Interval, mean_interval, newcombe_interval, verdict, wilson_interval
from s2l_ext.report.results import Gain, compare, is_accuracy, read_validations
from s2l_ext.report.run import Run

VALIDATION_DIR, FOLDER = "trainer.validation_data_dir", "validation"
SAME = 1e-6
NO_INTERVAL = (
    "Where there is no interval, the number of problems is not known. Set trainer.validation_data_dir, and the dumps "
    "tell it for a single validation set; without them the report counts the rows of data.val_files."
)


@dataclass(frozen=True)
class Difference:
    """Accuracy of another run minus that of the first; ``how`` is "paired", "independent" or "" without an interval,
    ``verdict`` as of :func:`s2l_ext.evaluation.intervals.verdict`, "" without one."""

    value: float
    ci95: Interval | None = None
    how: str = ""
    verdict: str = ""


def accuracy_keys(run: Run) -> list[str]:
    """verl's ``val-core/<data source>/acc/mean@n`` with at least one number."""
    return sorted({key for _, data in run.metrics for key in data if is_accuracy(key) and run.series(key)})


def source_and_samples(key: str) -> tuple[str, str]:
    """``("toy", "1")`` from ``val-core/toy/acc/mean@1``."""
    source, samples = key.removeprefix("val-core/").split("/acc/mean@", 1)
    return source, samples


def set_name(key: str) -> str:
    """``toy`` from ``val-core/toy/acc/mean@1``, with the number of samples where it is not 1."""
    source, samples = source_and_samples(key)
    return source if samples == "1" else f"{source}, mean of {samples}"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a run's validations say."""

    run: Run

    @cached_property
    def keys(self) -> list[str]:
        return accuracy_keys(self.run)

    @cached_property
    def dumps(self) -> dict[int, pd.DataFrame]:
        """Validation dumps by step, from the first folder that has some."""
        return read_validations([*self.run.places(VALIDATION_DIR), self.run.folder / FOLDER])

    def problems(self, key: str, step: int) -> pd.DataFrame | None:
        """The dump's problems of the key's data source; None where they cannot be told, or their mean is not what the
        run logged, as in a dump that another run left there."""
        dump, logged = self.dumps.get(step), dict(self.run.series(key)).get(step)
        if dump is None or logged is None:
            return None
        if dump["source"].isna().all() and len({source_and_samples(other)[0] for other in self.keys}) > 1:
            return None
        kept = dump[dump["source"].isna() | (dump["source"] == source_and_samples(key)[0])]
        return kept if len(kept) and abs(kept["accuracy"].mean() - logged) < SAME else None

    def accuracies(self, step: int) -> dict[str, float]:
        """By prompt, of all data sources whose problems the dump tells (:meth:`problems`)."""
        found = [self.problems(key, step) for key in self.keys]
        return {prompt: acc for each in found if each is not None for prompt, acc in each["accuracy"].items()}

    @cached_property
    def validation_files(self) -> list[Path | None]:
        """``data.val_files`` where they lie now; None for one that is gone."""
        named = self.run.setting("data.val_files", [])
        places = [self.run.located(str(name)) for name in (named if isinstance(named, list) else [named])]
        return [next((path for path in found if path.is_file()), None) for found in places]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Problems by data source in the validation files that the configuration names; empty if one is not there,
        or if verl took some of them and there are several sources."""
        found = [_count_sources(file) for file in self.validation_files if file]
        known = [count for count in found if count is not None]
        total = dict(sum(known, Counter())) if len(known) == len(self.validation_files) else {}
        most = self.run.setting("data.val_max_samples", -1)
        if most < 0:
            return total
        return {source: min(most, n) for source, n in total.items()} if len(total) == 1 else {}

    def count(self, key: str, step: int) -> int:
        """Problems of one validation; 0 where their number is not known."""
        problems = self.problems(key, step)
        return self.counts.get(source_and_samples(key)[0], 0) if problems is None else len(problems)

    def interval(self, key: str, step: int, value: float) -> Interval | None:
        """95 % interval over problems of one validation; None where their number is not known."""
        problems = self.problems(key, step)
        if problems is None:
            n = self.count(key, step)
            return wilson_interval(min(max(value, 0.0), 1.0), n) if n else None
        return mean_interval(problems["accuracy"].tolist())

    def band(self, key: str) -> list[Interval] | None:
        """:meth:`interval` of every validation, or None."""
        found = [self.interval(key, step, value) for step, value in self.run.series(key)]
        known = [interval for interval in found if interval is not None]
        return known if len(known) == len(found) else None

    def gain(self, key: str) -> tuple[float, Interval | None]:
        """Last minus first validation; paired by problem where both dumps hold the same problems."""
        (first, before), (last, after) = (self.run.series(key)[index] for index in (0, -1))
        paired = _compare_if_same(self.problems(key, first), self.problems(key, last))
        return after - before, paired.ci95 if paired else None


@cache
def difference(first: HeldOut, other: HeldOut, key: str) -> Difference | None:
    """Last validation of another run minus the last of the first; None where one of them has none under ``key``."""
    a, b = first.run.series(key), other.run.series(key)
    if not a or not b:
        return None
    (step_a, value_a), (step_b, value_b) = a[-1], b[-1]
    paired = _compare_if_same(first.problems(key, step_a), other.problems(key, step_b))
    if paired is not None:
        return Difference(value_b - value_a, paired.ci95, "paired", paired.verdict)
    of_a, of_b = first.interval(key, step_a, value_a), other.interval(key, step_b, value_b)
    if of_a is None or of_b is None:
        return Difference(value_b - value_a)
    found = newcombe_interval(value_a, of_a, value_b, of_b)
    fewest = min(first.count(key, step_a), other.count(key, step_b))
    return Difference(value_b - value_a, found, "independent", verdict(found, fewest))


def _compare_if_same(before: pd.DataFrame | None, after: pd.DataFrame | None) -> Gain | None:
    """None where a dump is missing or the problems differ."""
    if before is None or after is None or not before.index.equals(after.index):
        return None
    return compare(before, after)


def _count_sources(file: Path) -> Counter[str] | None:
    """Rows by ``data_source`` of a parquet file; None where it cannot be read as one."""
    try:
        return Counter(pq.read_table(file, columns=["data_source"])["data_source"].to_pylist())
    except (OSError, KeyError, pa.ArrowException):
        return None
