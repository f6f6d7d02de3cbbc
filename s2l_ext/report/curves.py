"""Curves of several runs on common axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from s2l_ext.errors import DataError
from s2l_ext.report.charts import Line, chart, empty
from s2l_ext.report.held_out import HeldOut, set_name
from s2l_ext.report.run import Run
from s2l_ext.training.sources import SOURCES

COLOURS = ("learner", "explorer", "third", "fourth", "fifth", "sixth")
STROKES = ("", " dashed", " dotted")
MOST_RUNS = len(COLOURS) * len(STROKES)
SHARE = (0.0, 1.0)
ACCURACY_READING = "A model that learns rises from its first point."
OF_VALIDATION = "s2l/val/"
AT_LEAST_ONE = "Share of problems that at least one of k samples solves, without bias (Chen et al. 2021)."
BAND = "The band is the 95 % interval over the problems of each validation on its own."
NO_VALIDATION = "The run logged no validation. Set trainer.test_freq and data.val_files to see held-out accuracy."


@dataclass(frozen=True)
class Curve:
    """One chart: a metric of every run."""

    key: str
    title: str
    unit: str
    y_range: tuple[float, float] | None = None
    reading: str = ""


TRAINING = (
    Curve("critic/score/mean", "Training reward", "mean reward of a row", None, "Over the prompts of each step."),
    Curve("response_length/mean", "Response length", "tokens of a row"),
    Curve("actor/entropy", "Entropy of the policy", "nats per token"),
    Curve("actor/kl_loss", "KL to the reference", "nats per token"),
)
SOURCE_CURVES = tuple(
    Curve(f"s2l/source/{source}/{name}", f"{title}, {source}'s rows", unit)
    for name, title, unit in (
        ("reward_mean", "Reward", "mean reward of a row"),
        ("response_length_mean", "Response length", "tokens of a row"),
        ("sampler_k3", "Distance of sampler and learner", "nats per token"),
    )
    for source in SOURCES
)
CONTROLLERS = (
    Curve("s2l/explorer/share", "Explorer's share of the rollouts", "share of rows (0 to 1)", SHARE),
    Curve("s2l/guidance/length", "Guidance length", "tokens"),
    Curve("s2l/guidance/groups_with_signal", "Groups with a learning signal", "share of groups (0 to 1)", SHARE),
    Curve("s2l/kl/beta", "KL coefficient", "beta"),
    Curve("s2l/curriculum/pass_rate_mean", "Mean pass rate of all prompts", "pass rate (0 to 1)", SHARE),
    Curve("s2l/curriculum/effective_sample_size", "Effective sample size of the draw", "prompts"),
    Curve("s2l/distill/forward_kl", "Forward KL: KL(teacher, student)", "nats per token"),
    Curve("s2l/distill/reverse_kl", "Reverse KL: KL(student, teacher)", "nats per token"),
)


def colour(place: int) -> str:
    """CSS classes of the run at ``place``, the same in every chart and table."""
    return COLOURS[place % len(COLOURS)] + STROKES[place // len(COLOURS) % len(STROKES)]


def check_count(runs: int) -> None:
    """Raises DataError: more runs than lines that an eye can tell apart."""
    if runs > MOST_RUNS:
        raise DataError(f"{runs} runs: one page tells at most {MOST_RUNS} apart. Report fewer at a time.")


def overlay(runs: Sequence[Run], curve: Curve) -> str:
    """One line for each run that logged the metric."""
    lines = [Line(run.name, colour(place), run.series(curve.key)) for place, run in enumerate(runs)]
    return chart(curve.title, curve.unit, lines, curve.y_range, curve.reading)


def accuracy_charts(runs: Sequence[HeldOut]) -> list[str]:
    """One run: its validation sets in charts of several lines. Several runs: one chart for each validation set."""
    if len(runs) == 1:
        return _of_one(runs[0])
    keys = sorted({key for held_out in runs for key in held_out.keys})
    if not keys:
        return [empty("Held-out accuracy", NO_VALIDATION)]
    return [_of_many(runs, key) for key in keys]


def pass_charts(runs: Sequence[Run]) -> list[str]:
    """pass@k over the validations. One run: a chart for each validation set with a line for each k and verl's best@N.
    Several: a chart for each set with its largest k."""
    sources: dict[str, set[int]] = {}
    for run in runs:
        for source, k in pass_keys(run):
            sources.setdefault(source, set()).add(k)
    return [_pass_chart(runs, source, sorted(ks)) for source, ks in sorted(sources.items())]


def pass_keys(run: Run) -> list[tuple[str, int]]:
    """Data source and k of every ``s2l/val/<source>/pass@k``."""
    named = sorted({key for _, data in run.metrics for key in data if key.startswith(OF_VALIDATION)})
    parts = [key.removeprefix(OF_VALIDATION).rsplit("/pass@", 1) for key in named]
    return [(source, int(k)) for source, k in (part for part in parts if len(part) == 2) if k.isdecimal()]


def _pass_chart(runs: Sequence[Run], source: str, ks: Sequence[int]) -> str:
    most = ks[-1]
    if len(runs) > 1:
        lines = [
            Line(run.name, colour(n), run.series(f"{OF_VALIDATION}{source}/pass@{most}")) for n, run in enumerate(runs)
        ]
        return chart(f"pass@{most}, {source}", "share of problems (0 to 1)", lines, SHARE, AT_LEAST_ONE)
    (run,) = runs
    lines = [Line(f"pass@{k}", colour(n), run.series(f"{OF_VALIDATION}{source}/pass@{k}")) for n, k in enumerate(ks)]
    best = run.series(f"val-core/{source}/acc/best@{most}/mean")
    if best:
        lines.append(Line(f"verl's best@{most}, biased low", colour(len(COLOURS) + len(ks) - 1), best))
    return chart(f"pass@k, {source}", "share of problems (0 to 1)", lines, SHARE, AT_LEAST_ONE)


def _of_many(runs: Sequence[HeldOut], key: str) -> str:
    lines = [_line(held_out, key, held_out.run.name, colour(place)) for place, held_out in enumerate(runs)]
    return _chart(f"Held-out accuracy, {set_name(key)}", lines)


def _of_one(held_out: HeldOut) -> list[str]:
    keys = held_out.keys
    if not keys:
        return [empty("Held-out accuracy", NO_VALIDATION)]
    groups = [keys[start : start + len(COLOURS)] for start in range(0, len(keys), len(COLOURS))]
    return [
        _chart(
            "Held-out accuracy", [_line(held_out, key, set_name(key), colour(place)) for place, key in enumerate(group)]
        )
        for group in groups
    ]


def _line(held_out: HeldOut, key: str, name: str, colour: str) -> Line:
    return Line(name, colour, held_out.run.series(key), held_out.band(key))


def _chart(title: str, lines: list[Line]) -> str:
    banded = any(line.band for line in lines)
    reading = f"{ACCURACY_READING} {BAND}" if banded else ACCURACY_READING
    return chart(title, "accuracy (0 to 1)", lines, SHARE, reading)
