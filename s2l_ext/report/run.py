"""The folder of one run, as the pages of ``s2l report`` read it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from s2l_ext.errors import DataError
from s2l_ext.evaluation.intervals import Interval, mean_interval, newcombe_interval, verdict, wilson_interval
from s2l_ext.report.draws import Draw, read_draws
from s2l_ext.report.results import (
    Difference,
    Metrics,
    is_accuracy,
    is_number,
    joined,
    paired,
    read_metrics,
    read_validations,
    series,
    source_and_samples,
)
from s2l_ext.utils import json_text
from s2l_ext.utils.secrets import masked

METRICS_FILE = "metrics.jsonl"
CURRICULUM_FILE = "curriculum.jsonl"
CONFIG_FILE, PLAN_FILE = "s2l_config.yaml", "plan.json"
KL, CURRICULUM = "s2l/kl/", "s2l/curriculum/"
VALIDATION_DIR, VALIDATIONS = "trainer.validation_data_dir", "validation"
SAME = 1e-6
INNER = "run"
"""Where ``s2l demo`` and a pipeline's stages put the run inside their own folder."""


@dataclass(frozen=True, eq=False)
class Run:
    """Attributes:
    config: verl's whole configuration as ``s2l train`` resolved it, nested; empty where the folder has none.
    plan: what ``s2l train`` announced; empty where the folder has none.
    """

    name: str
    metrics: Metrics
    draws: list[Draw]
    folder: Path = Path()
    config: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Training steps that left metrics; validation before training is step 0."""
        return len({step for step, _ in self.metrics if step > 0})

    def series(self, key: str) -> list[tuple[int, float]]:
        return series(self.metrics, key)

    def joint(self, *keys: str) -> list[tuple[int, list[float]]]:
        """``(step, values)`` of the steps that logged every key."""
        return joined([self.series(key) for key in keys])

    def last(self, key: str) -> float | None:
        values = self.series(key)
        return values[-1][1] if values else None

    @cached_property
    def by_step(self) -> dict[int, dict[str, float]]:
        """Finite numbers of every step, by step; a later line of a step overrides an earlier one."""
        found: dict[int, dict[str, float]] = {}
        for step, data in self.metrics:
            numbers = {key: float(value) for key, value in data.items() if is_number(value)}
            found.setdefault(step, {}).update(numbers)
        return dict(sorted(found.items()))

    @cached_property
    def metric_names(self) -> set[str]:
        return {key for _, data in self.metrics for key in data}

    def logged(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.metric_names)

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A value of the configuration, such as ``trainer.nnodes``; ``default`` where it is absent or null."""
        value: Any = self.config
        for name in dotted.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return default if value is None else value

    def places(self, dotted: str) -> list[Path]:
        """Where a path of the configuration may lie now: as it was to the run's folder, and as it stands."""
        value = self.setting(dotted)
        return self.located(value) if isinstance(value, str) else []

    def located(self, value: str) -> list[Path]:
        """:meth:`places` of a path. A folder that was moved, or trained from another working directory, keeps its
        neighbours."""
        path, own = Path(value), Path(self.setting("trainer.default_local_dir", ""))
        if not own.parts or path.is_absolute() != own.is_absolute():
            return [path]
        return [Path(os.path.normpath(self.folder / os.path.relpath(path, own))), path]

    @property
    def has_curriculum(self) -> bool:
        return self.logged(CURRICULUM) or bool(self.draws)

    # ---- held-out accuracy, with 95 % intervals over problems

    @cached_property
    def keys(self) -> list[str]:
        """verl's ``val-core/<data source>/acc/mean@n`` with at least one number."""
        return sorted(key for key in self.metric_names if is_accuracy(key) and self.series(key))

    @cached_property
    def dumps(self) -> dict[int, pd.DataFrame]:
        """Validation dumps by step, from the first folder that has some."""
        return read_validations([*self.places(VALIDATION_DIR), self.folder / VALIDATIONS])

    def problems(self, key: str, step: int) -> pd.DataFrame | None:
        """The dump's problems of the key's data source; None where they cannot be told, or their mean is not what the
        run logged, as in a dump that another run left there."""
        dump, logged = self.dumps.get(step), dict(self.series(key)).get(step)
        if dump is None or logged is None:
            return None
        if dump["source"].isna().all() and len({source_and_samples(other)[0] for other in self.keys}) > 1:
            return None
        kept = dump[dump["source"].isna() | (dump["source"] == source_and_samples(key)[0])]
        return kept if len(kept) and abs(kept["accuracy"].mean() - logged) < SAME else None

    @cached_property
    def validation_files(self) -> list[Path | None]:
        """``data.val_files`` where they lie now; None for one that is gone."""
        named = self.setting("data.val_files", [])
        places = [self.located(str(name)) for name in (named if isinstance(named, list) else [named])]
        return [next((path for path in found if path.is_file()), None) for found in places]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Problems by data source in the validation files that the configuration names; empty if one is not there,
        or if verl took some of them and there are several sources."""
        found = [_count_sources(file) for file in self.validation_files if file]
        known = [count for count in found if count is not None]
        total = dict(sum(known, Counter())) if len(known) == len(self.validation_files) else {}
        most = self.setting("data.val_max_samples", -1)
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
        found = [self.interval(key, step, value) for step, value in self.series(key)]
        return None if None in found else [interval for interval in found if interval]

    def gain(self, key: str) -> tuple[float, Interval | None]:
        """Last minus first validation; paired by problem where both dumps hold the same problems."""
        (first, before), (last, after) = (self.series(key)[index] for index in (0, -1))
        found = paired(self.problems(key, first), self.problems(key, last))
        return after - before, found.ci95 if found else None


def _count_sources(file: Path) -> Counter[str] | None:
    """Rows by ``data_source`` of a parquet file; None where it cannot be read as one."""
    try:
        return Counter(pq.read_table(file, columns=["data_source"])["data_source"].to_pylist())
    except (OSError, KeyError, pa.ArrowException):
        return None


@cache
def difference(first: Run, other: Run, key: str) -> Difference | None:
    """Last validation of another run minus the last of the first; None where one of them has none under ``key``."""
    a, b = first.series(key), other.series(key)
    if not a or not b:
        return None
    (step_a, value_a), (step_b, value_b) = a[-1], b[-1]
    if same := paired(first.problems(key, step_a), other.problems(key, step_b)):
        return replace(same, value=value_b - value_a)
    of_a, of_b = first.interval(key, step_a, value_a), other.interval(key, step_b, value_b)
    if of_a is None or of_b is None:
        return Difference(value_b - value_a)
    found = newcombe_interval(value_a, of_a, value_b, of_b)
    fewest = min(first.count(key, step_a), other.count(key, step_b))
    return Difference(value_b - value_a, found, "independent", verdict(found, fewest))


def read_run(folder: Path) -> Run:
    """The run of a folder, or of its subfolder ``run``.

    Raises:
        DataError: no such folder, no metrics in it, or a file that is not what a run writes.
    """
    if not folder.is_dir():
        reason = "not a folder" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {reason}. Give the run's trainer.default_local_dir, which holds {METRICS_FILE}.")
    if not (folder / METRICS_FILE).is_file() and (folder / INNER / METRICS_FILE).is_file():
        folder = folder / INNER
    path = folder / METRICS_FILE
    if not path.is_file():
        raise DataError(
            f"{path}: no such file. Give the run's trainer.default_local_dir; a run that stopped before its first "
            "step has no metrics, and its log says why."
        )
    metrics = read_metrics(path)
    if not metrics:
        raise DataError(f"{path}: no complete line. The run logged no step yet; report again after its first step.")
    config, plan = read_mapping(folder / CONFIG_FILE), read_mapping(folder / PLAN_FILE)
    folder = folder.resolve()
    return Run(names_of([folder])[0], metrics, read_draws(folder / CURRICULUM_FILE), folder, config, plan)


def read_mapping(path: Path) -> dict[str, Any]:
    """Content of a YAML or JSON file without secrets; empty where there is no file.

    Raises:
        DataError: the file cannot be parsed, or holds no mapping.
    """
    if not path.is_file():
        return {}
    load, what = (json_text.loads, "JSON") if path.suffix == ".json" else (yaml.safe_load, "YAML")
    try:
        found = load(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: no {what} ({reason}). Restore what s2l train wrote, or remove the file.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds no mapping. Restore what s2l train wrote, or remove the file.")
    kept: dict[str, Any] = masked(found)
    return kept


def names_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; a last part ``run`` says nothing."""
    parts = [
        folder.parts[:-1] if folder.name == INNER and len(folder.parts) > 2 else folder.parts for folder in folders
    ]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def count_steps(run: Run) -> str:
    return f"{run.steps} training step{'' if run.steps == 1 else 's'}"
