"""Sections of an EXPO run: the KL coefficient against accuracy, the pass rates of the prompts, and the draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup

from s2l_ext.report import curves
from s2l_ext.report.charts import NO_VALUES, Line, Values, by_label, chart, heat_map, tick_text, ticks
from s2l_ext.report.draws import BINS, ChiSquare, Tally, chi_square, tally
from s2l_ext.report.page import Section, empty
from s2l_ext.report.run import CURRICULUM, KL, Run, count_steps

NO_DRAWS = "The run's folder has no curriculum.jsonl with a complete line, which holds the draws of each step."
ACCURACY = "verifier accuracy of the batch (0 to 1)"
NO_RATES = "This curriculum keeps no pass rates, so prompts cannot be counted by them."
SIGNIFICANT = 0.01


def sections(run: Run) -> list[Section]:
    """The curriculum, then the KL coefficient; a part that the run did not use is left out."""
    found = []
    if run.has_curriculum:
        rates = [pass_rate_map(run), pass_rates(run), sample_size(run)]
        found.append(Section("pass_rates", "Pass rates of the prompts", rates))
        found.append(Section("draws", "What was drawn", [draws_by_bucket(run), visits(run)]))
    for kl in curves.sections(run, "of_each_run"):
        found.append(replace(kl, figures=[beta_against_accuracy(run), *kl.figures]))
    return found


def lead(run: Run) -> str:
    """The last step in words."""
    named = {
        "batch accuracy": KL + "accuracy",
        "KL coefficient": KL + "beta",
        "KL to the reference (nats per token)": KL + "kl",
        "mean pass rate": CURRICULUM + "pass_rate_mean",
        "effective sample size (prompts)": CURRICULUM + "effective_sample_size",
    }
    found = {name: run.last(key) for name, key in named.items()}
    values = [f"{name} {value:.4g}" for name, value in found.items() if value is not None]
    never = _never_seen(run)
    values += [] if never is None else [f"{never:.1%} of the prompts never seen"]
    return f"Last values after {count_steps(run)}: {', '.join(values)}."


def pass_rate_map(run: Run) -> Markup:
    title, rows = "Pass rates of all prompts over time", _histograms(run)
    if not rows:
        return empty(title, NO_VALUES)
    fullest = int(np.argmax(rows[-1][1]))
    reading = (
        "Mass that moves up is prompts the model learns; mass that stays at the bottom is prompts it cannot solve. "
        f"At step {rows[-1][0]} the fullest bin is {fullest / BINS:.2f} to {(fullest + 1) / BINS:.2f}, with "
        f"{rows[-1][1][fullest]:.1%} of the prompts."
    )
    return heat_map(title, "pass rate (0 to 1)", "prompts", rows, reading)


def _histograms(run: Run) -> list[tuple[int, Sequence[float]]]:
    """Shares by step; from the counts of ``curriculum.jsonl`` where the metrics have none."""
    logged = run.joint(*(f"{CURRICULUM}pass_rate_hist/{index:02d}" for index in range(BINS)))
    return [*logged] or [
        (draw.step, draw.histogram / draw.histogram.sum())
        for draw in run.draws
        if draw.histogram is not None and draw.histogram.any()
    ]


def pass_rates(run: Run) -> Markup:
    lines = [
        _band_line(run, "median, band q10 to q90", "plan", "pass_rate_q50", "pass_rate_q10", "pass_rate_q90"),
        _band_line(run, "mean, band q25 to q75", "learner", "pass_rate_mean", "pass_rate_q25", "pass_rate_q75"),
    ]
    reading = "Half of the prompts lie in the inner band, four fifths in the outer. It rises as the model learns."
    return chart("Mean and quantiles of the pass rates", "pass rate (0 to 1)", lines, reading)


def _band_line(run: Run, name: str, colour: str, *keys: str) -> Line:
    rows = run.joint(*(CURRICULUM + key for key in keys))
    return Line(name, colour, [(step, row[0]) for step, row in rows], [(row[1], row[2]) for _, row in rows])


def sample_size(run: Run) -> Markup:
    """Over the number of prompts where ``curriculum.jsonl`` gives it."""
    title, sizes = "Effective sample size", run.series(CURRICULUM + "effective_sample_size")
    prompts = run.draws[-1].prompts if run.draws else 0
    if not prompts:
        reading = "How many prompts an even draw would choose from, had it the same spread of weights."
        return chart(title, "prompts", [Line("effective sample size", "learner", sizes)], reading)
    lines = [Line("effective sample size / prompts", "learner", [(step, size / prompts) for step, size in sizes])]
    reading = f"1 draws evenly from all {prompts} prompts; a value near 0 trains on a few prompts again and again."
    return chart(title, "share of the prompts (0 to 1)", lines, reading)


def visits(run: Run) -> Markup:
    title = "Prompts by number of visits"
    if not run.draws or run.draws[-1].visits is None:
        return empty(title, NO_RATES if run.draws else NO_DRAWS)
    last, never, counts = run.draws[-1], _never_seen(run) or 0.0, run.draws[-1].visits
    labels = [str(count) for count in range(len(counts))]
    labels[-1] += "+"
    most = int(np.max(np.nonzero(counts), initial=1)) + 1
    reading = (
        f"{never:.1%} of the {last.prompts} prompts were never seen up to step {last.step}. "
        "A long tail to the right shows prompts that are drawn often."
    )
    bars = [Values("prompts", "learner", counts[:most].tolist())]
    return by_label(f"{title}, step {last.step}", ("visits of a prompt", "prompts"), labels[:most], bars, reading)


def _never_seen(run: Run) -> float | None:
    last = run.draws[-1] if run.draws else None
    if last and last.visits is not None and last.prompts:
        return float(last.visits[0]) / last.prompts
    return run.last(CURRICULUM + "never_seen_share")


def draws_by_bucket(run: Run) -> Markup:
    title, names = "Prompts drawn, by pass rate when drawn", ("pass rate when drawn (lower edge)", "draws")
    known = [draw.bucket_draws for draw in run.draws if draw.bucket_draws is not None]
    if not known:
        return empty(title, NO_RATES if run.draws else NO_DRAWS)
    labels, totals = [f"{index / BINS:.2f}" for index in range(BINS)], tally(run.draws)
    if totals is None:
        reading = f"The order {run.draws[-1].type} draws without weights, so there is no expectation to compare with."
        return by_label(title, names, labels, [Values("drawn", "learner", np.sum(known, axis=0).tolist())], reading)
    groups = [
        Values("drawn", "learner", totals.observed.tolist()),
        Values("expected from the weights, without replacement", "explorer", totals.expected.tolist()),
    ]
    return by_label(title, names, labels, groups, _judge(totals))


def _judge(totals: Tally) -> str:
    drawn, impossible = int(totals.observed.sum()), int(totals.observed[totals.expected == 0].sum())
    if impossible:
        return f"{impossible} of {drawn} draws fell where the weights are 0: the sampler and its weights disagree."
    return verdict(chi_square(totals.observed, totals.expected, totals.left) if drawn else None, drawn)


def verdict(test: ChiSquare | None, draws: int) -> str:
    """The chi-square test in a sentence."""
    if test is None or test.degrees == 0:
        return f"Not enough draws ({draws}) for a chi-square test: it needs two bins that expect at least 5 each."
    p = f"p = {test.p:.3f}" if test.p >= 0.001 else "p < 0.001"
    numbers = f"Chi-square {test.statistic:.2f}, {test.degrees} degrees of freedom, {p} over {draws} draws"
    if test.p >= SIGNIFICANT:
        return f"{numbers}: the draws fit the weights."
    return f"{numbers}: the draws do not fit the weights by chance alone."


def beta_against_accuracy(run: Run) -> Markup:
    title, rows = "KL coefficient against accuracy", run.joint(KL + "accuracy", KL + "beta")
    if not rows:
        return empty(title, NO_VALUES)
    points = [(accuracy, beta) for _, (accuracy, beta) in rows]
    labels = [f"step {step}: {accuracy:.4g}, {beta:.4g}" for step, (accuracy, beta) in rows]
    line = Line("one training step", "learner", points, style="points", says=labels)
    across = [accuracy for accuracy, _ in points]
    at = [(value, tick_text(value)) for value in ticks(0.0, 1.0, 0.2)]
    x = (min(0.0, *across), max(1.0, *across))
    reading = (
        "Where beta is a number times rho(accuracy), all points lie on one curve: the higher the accuracy, the "
        "stronger the pull to the reference. A controller that follows the KL has no such curve."
    )
    return chart(title, "beta", [line], reading, None, ACCURACY, x, at)
