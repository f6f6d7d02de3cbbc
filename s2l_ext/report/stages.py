"""A pipeline's folder as one page: its models side by side, and the curves of all training stages end to end."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2l_ext.errors import DataError
from s2l_ext.report.charts import Line, chart, empty
from s2l_ext.report.curves import COLOURS
from s2l_ext.report.held_out import accuracy_keys
from s2l_ext.report.run import METRICS_FILE, Run, read_run
from s2l_ext.report.single import FORWARD_KL, REVERSE_KL
from s2l_ext.report.style import Section, document
from s2l_ext.utils import json_text

MANIFEST, TABLE = "manifest.json", "table.json"


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


def sections(stages: list[Stage]) -> list[Section]:
    """Curves with one colour for each stage."""
    return [
        Section("held_out_accuracy", "Held-out accuracy", [_accuracy(stages)]),
        Section(
            "distillation",
            "Distillation",
            [
                _curve(stages, FORWARD_KL, "Forward KL: KL(teacher, student)", "nats per token", FORWARD_READING),
                _curve(stages, REVERSE_KL, "Reverse KL: KL(student, teacher)", "nats per token", REVERSE_READING),
            ],
        ),
        Section(
            "training",
            "Training",
            [
                _curve(stages, "critic/score/mean", "Training reward", "mean reward of a row", REWARD_READING),
                _curve(stages, "response_length/mean", "Response length", "tokens of a row"),
            ],
        ),
    ]


FORWARD_READING = (
    "Should fall during the warm-up, whose rows the teacher samples. Every point is taken on rows that the student was "
    "not trained on before."
)
REVERSE_READING = "Should fall during on-policy distillation, whose rows the student samples."
REWARD_READING = "Rows are the teacher's in the warm-up, so there it shows the teacher."


def page(name: str, folder: Path, found: list[Section]) -> str:
    body = [f"<h1>{html.escape(name)}</h1>", _table(folder), *(section.html() for section in found)]
    return document(f"s2l report: {name}", "".join(body))


def _accuracy(stages: list[Stage]) -> str:
    keys = [(stage, key) for stage in stages for key in accuracy_keys(stage.run)[:1]]
    lines = [Line(stage.name, _colour(stages, stage), stage.series(key)) for stage, key in keys]
    reading = (
        "Each stage starts from the model that it was given; the teacher's stages and the student's are two models."
    )
    return chart("Held-out accuracy", "accuracy (0 to 1)", lines, (0.0, 1.0), reading)


def _curve(stages: list[Stage], key: str, title: str, unit: str, reading: str = "") -> str:
    lines = [Line(stage.name, _colour(stages, stage), stage.series(key)) for stage in stages]
    if not any(line.points for line in lines):
        return empty(title, f"No stage logged {key}.")
    return chart(title, unit, lines, reading=reading)


def _colour(stages: list[Stage], stage: Stage) -> str:
    return COLOURS[stages.index(stage) % len(COLOURS)]


# ---- the table ----------------------------------------------------------------------------------------------------


def _table(folder: Path) -> str:
    """The pipeline's final table; a sentence where it has not come to its end."""
    try:
        rows = json_text.loads((folder / TABLE).read_text())
    except (OSError, ValueError):
        return f"<p class='note'>The pipeline has not come to its end: {TABLE} is not there yet.</p>"
    head = [
        "stage",
        "model",
        "accuracy",
        "forward KL",
        "reverse KL",
        "tokens",
        "accelerator seconds",
        "FLOPs (estimated)",
    ]
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(row))}</tr>" for row in rows)
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f"<h2>Models</h2><div class='scroll'><table><tr>{titles}</tr>{cells}</table></div>"


def _cells(row: dict[str, Any]) -> list[str]:
    measured: dict[str, Any] = next(iter(row["accuracy"].values()), {})
    seconds, flops, tokens = row["accelerator_seconds"], row["flops"], row["tokens"]
    return [
        row["stage"],
        row["model"],
        _with_error(measured, "accuracy", "standard_error", 3),
        _with_error(measured, "forward_kl_per_token", "forward_kl_per_token_standard_error", 4),
        _with_error(measured, "reverse_kl_per_token", "reverse_kl_per_token_standard_error", 4),
        "" if tokens is None else f"{tokens:,}",
        "" if seconds is None else f"{seconds:,.0f}",
        "" if flops is None else f"{flops:.2e}",
    ]


def _with_error(values: dict[str, Any], name: str, error: str, digits: int) -> str:
    value, spread = values.get(name), values.get(error)
    if value is None:
        return ""
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")
