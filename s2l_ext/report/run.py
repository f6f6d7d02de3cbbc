"""The folder of one run, as the pages of ``s2l report`` read it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from s2l_ext.errors import DataError
from s2l_ext.report.draws import Draw, read_draws
from s2l_ext.report.results import Metrics, is_number, read_metrics, series
from s2l_ext.utils import json_text
from s2l_ext.utils.secrets import masked

METRICS_FILE = "metrics.jsonl"
CURRICULUM_FILE = "curriculum.jsonl"
CONFIG_FILE, PLAN_FILE = "s2l_config.yaml", "plan.json"
KL, CURRICULUM = "s2l/kl/", "s2l/curriculum/"
INNER = "run"
"""Where ``s2l demo`` and a pipeline's stages put the run inside their own folder."""


@dataclass(frozen=True)
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

    def joint(self, *keys: str) -> list[tuple[int, tuple[float, ...]]]:
        """``(step, values)`` of the steps that logged every key."""
        found = [dict(self.series(key)) for key in keys]
        steps = set(found[0]).intersection(*found[1:])
        return [(step, tuple(values[step] for values in found)) for step in sorted(steps)]

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

    def logged(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for _, data in self.metrics for key in data)

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
    def has_kl(self) -> bool:
        return self.logged(KL)

    @property
    def has_curriculum(self) -> bool:
        return self.logged(CURRICULUM) or bool(self.draws)


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
