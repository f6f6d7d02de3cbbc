"""The folder of one run, as the pages of ``s2l report`` read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s2l_ext.errors import DataError
from s2l_ext.report.draws import Draw, read_draws
from s2l_ext.report.results import Metrics, read_metrics, series

METRICS_FILE = "metrics.jsonl"
CURRICULUM_FILE = "curriculum.jsonl"
KL, CURRICULUM = "s2l/kl/", "s2l/curriculum/"


@dataclass(frozen=True)
class Run:
    name: str
    metrics: Metrics
    draws: list[Draw]

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

    def logged(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for _, data in self.metrics for key in data)

    @property
    def has_kl(self) -> bool:
        return self.logged(KL)

    @property
    def has_curriculum(self) -> bool:
        return self.logged(CURRICULUM) or bool(self.draws)


def read_run(folder: Path) -> Run:
    """Raises DataError: no such folder, no metrics in it, or a line that is not what a run writes."""
    if not folder.is_dir():
        reason = "not a folder" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {reason}. Give the run's trainer.default_local_dir, which holds {METRICS_FILE}.")
    path = folder / METRICS_FILE
    if not path.is_file():
        raise DataError(
            f"{path}: no such file. Give the run's trainer.default_local_dir; a run that stopped before its first "
            "step has no metrics, and its log says why."
        )
    metrics = read_metrics(path)
    if not metrics:
        raise DataError(f"{path}: no complete line. The run logged no step yet; report again after its first step.")
    return Run(folder.resolve().name, metrics, read_draws(folder / CURRICULUM_FILE))
