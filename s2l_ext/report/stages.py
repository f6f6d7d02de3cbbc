"""A pipeline's folder as one page: its models side by side, and the curves of all training stages end to end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from s2l_ext.errors import DataError
from s2l_ext.report.charts import Line, chart, colour
from s2l_ext.report.curves import common_sections
from s2l_ext.report.page import Section, empty, table
from s2l_ext.report.run import METRICS_FILE, Run, read_run
from s2l_ext.utils import json_text

MANIFEST, TABLE = "manifest.json", "table.json"
HEAD = ("stage", "model", "accuracy", "forward KL", "reverse KL", "tokens", "accelerator seconds", "FLOPs (estimated)")
MEASURED = (
    ("accuracy", "standard_error", 3),
    ("forward_kl_per_token", "forward_kl_per_token_standard_error", 4),
    ("reverse_kl_per_token", "reverse_kl_per_token_standard_error", 4),
)
COUNTED = (("tokens", ",.0f"), ("accelerator_seconds", ",.0f"), ("flops", ".2e"))
READING = "Each stage starts from the model that it was given; the teacher's stages and the student's are two models."


@dataclass(frozen=True)
class Stage:
    """A training stage and the step of the pipeline at which it starts."""

    name: str
    run: Run
    start: int

    def series(self, key: str) -> list[tuple[float, float]]:
        return [(float(self.start + step), value) for step, value in self.run.series(key)]


def is_pipeline(folder: Path) -> bool:
    """Whether ``s2l pipeline`` wrote the folder."""
    return (folder / MANIFEST).is_file()


def read_stages(folder: Path) -> list[Stage]:
    """Training stages in the order of the manifest.

    Raises:
        DataError: the manifest cannot be read, or no stage has trained yet.
    """
    try:
        names = list(json_text.loads((folder / MANIFEST).read_text())["stages"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / MANIFEST}: no manifest of s2l pipeline ({error!r}). Run the pipeline again."
        ) from error
    stages, start = [], 0
    for name in names:
        place = folder / "stages" / name / "run"
        if (place / METRICS_FILE).is_file() and (place / METRICS_FILE).stat().st_size:
            stages.append(Stage(name, read_run(place), start))
            start += stages[-1].run.steps
    if not stages:
        raise DataError(f"{folder}: no training stage has logged a step yet. Report again after one has.")
    return stages


def sections(folder: Path, stages: list[Stage]) -> list[Section]:
    """The table of the models, and curves with one colour for each stage."""
    accuracy = [
        Line(stage.name, colour(place), stage.series(key))
        for place, stage in enumerate(stages)
        for key in stage.run.keys[:1]
    ]
    held_out = chart("Held-out accuracy", "accuracy (0 to 1)", accuracy, READING)
    found = [
        Section("models", "Models", [_models(folder)]),
        Section("held_out_accuracy", "Held-out accuracy", [held_out]),
    ]
    return [*found, *common_sections(stages, "stages")]


def _models(folder: Path) -> Markup:
    """The pipeline's final table; a sentence where it has not come to its end."""
    try:
        rows = json_text.loads((folder / TABLE).read_text())
    except (OSError, ValueError):
        return empty("Models", f"The pipeline has not come to its end: {TABLE} is not there yet.", wide=True)
    return table("Models", HEAD, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    values: dict[str, Any] = next(iter(row["accuracy"].values()), {})
    measured = [describe_value(values.get(name), values.get(error), digits) for name, error, digits in MEASURED]
    return [row["stage"], row["model"], *measured, *describe_costs(row)]


def describe_value(value: float | None, error: float | None, digits: int) -> str:
    """``0.512 ± 0.010``; without a standard error the value alone, without a value nothing."""
    if value is None:
        return ""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def describe_costs(row: dict[str, Any]) -> list[str]:
    """Tokens, accelerator seconds and FLOPs of a model in the pipeline's table."""
    return ["" if row[name] is None else f"{row[name]:{form}}" for name, form in COUNTED]
