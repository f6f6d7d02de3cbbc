"""A pipeline's folder as one page: its models side by side, and the curves of all training stages end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from s2l_ext.errors import DataError
from s2l_ext.report.charts import NO_VALUES, Line, chart, colour
from s2l_ext.report.curves import common_sections
from s2l_ext.report.page import Section, empty, table
from s2l_ext.report.results import set_name
from s2l_ext.report.run import METRICS_FILE, Run, read_run
from s2l_ext.utils import json_text

MANIFEST, TABLE = "manifest.json", "table.json"
COSTS = ("tokens", "accelerator seconds", "FLOPs (estimated)")
MEASURED = (
    ("accuracy", "accuracy", "standard_error", 3),
    ("forward KL", "forward_kl_per_token", "forward_kl_per_token_standard_error", 4),
    ("reverse KL", "reverse_kl_per_token", "reverse_kl_per_token_standard_error", 4),
)
"""Of an evaluate stage: heading, value, standard error, digits."""
COUNTED = (("tokens", ",.0f"), ("accelerator_seconds", ",.0f"), ("flops", ".2e"))
TITLE = "Held-out accuracy"
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
    """Training stages of the pipeline's file, in its order.

    Raises:
        DataError: the manifest cannot be read, or no stage has trained yet.
    """
    try:
        manifest = json_text.loads((folder / MANIFEST).read_text())
        names = manifest.get("order") or list(manifest["stages"])
    except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
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
    found = [
        Section("models", "Models", [_models(folder)]),
        Section("held_out_accuracy", TITLE, _held_out(stages)),
    ]
    return [*found, *common_sections(stages, "stages")]


def _held_out(stages: Sequence[Stage]) -> list[Markup]:
    """A chart for each validation set."""
    keys = sorted({key for stage in stages for key in stage.run.keys})
    if not keys:
        return [empty(TITLE, NO_VALUES)]
    return [chart(f"{TITLE}, {set_name(key)}", "accuracy (0 to 1)", _lines(stages, key), READING) for key in keys]


def _lines(stages: Sequence[Stage], key: str) -> list[Line]:
    return [Line(one.name, colour(at), one.series(key)) for at, one in enumerate(stages) if key in one.run.keys]


def _models(folder: Path) -> Markup:
    """The pipeline's final table; a sentence where it has not come to its end."""
    try:
        rows = json_text.loads((folder / TABLE).read_text())
    except (OSError, ValueError):
        rows = []
    if not rows:
        return empty("Models", f"The pipeline has not come to its end: {TABLE} is not there yet, or empty.", wide=True)
    return table("Models", *model_table(rows))


def model_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of a pipeline's models: what every evaluate stage measured, else verl's validation; costs."""
    stages = list(dict.fromkeys(stage for row in rows for stage in row["accuracy"])) or [""]
    columns = [(stage, what) for stage in stages for what in MEASURED if _measures(rows, stage, what[1])]
    columns = columns or [("", MEASURED[0])]
    head = [f"{stage}: {name}" if len(stages) > 1 else name for stage, (name, *_) in columns]
    return ["stage", "model", *head, *COSTS], [_cells(row, columns) for row in rows]


def _measures(rows: Sequence[dict[str, Any]], stage: str, value: str) -> bool:
    return any(row["accuracy"].get(stage, {}).get(value) is not None for row in rows)


def _cells(row: dict[str, Any], columns: Sequence[tuple[str, tuple[str, str, str, int]]]) -> list[str]:
    validation, measured = row.get("validation_accuracy"), []
    for stage, (_, value, error, digits) in columns:
        found = row["accuracy"].get(stage, {})
        instead = f"{validation:.3f} (validation)" if value == "accuracy" and validation is not None else ""
        measured.append(describe_value(found.get(value), found.get(error), digits) or instead)
    return [row["stage"], row["model"], *measured, *describe_costs(row)]


def describe_value(value: float | None, error: float | None, digits: int) -> str:
    """``0.512 ± 0.010``; without a standard error the value alone, without a value nothing."""
    if value is None:
        return ""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def describe_costs(row: dict[str, Any]) -> list[str]:
    """Tokens, accelerator seconds and FLOPs of a model in the pipeline's table."""
    return ["" if row[name] is None else f"{row[name]:{form}}" for name, form in COUNTED]
