"""What only the models can tell of the samples: entropy, distance to the learner, and the gradients they give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from s2l_ext.errors import ConfigError
from s2l_ext.studies.diversity.curves import Bootstrap, Floats
from s2l_ext.studies.diversity.gradients import MEASURES, GradientReader, problem_statistics
from s2l_ext.studies.diversity.sets import RowSet
from s2l_ext.studies.diversity.tokens import Floats32, TokenModel

COMPARED, LAGS = 16, 20
Coherence = Callable[[str, str], tuple[int, int]]
"""Of a prompt and a response: steps that follow from the ones before, and all steps."""


@dataclass(frozen=True)
class Settings:
    """Attributes:
    compared: samples of a problem in Self-BLEU and edit diversity, whose cost grows with its square; None: up to 16.
    gradient_problems: the first problems by id, 0 for none.
    gradient_parameters: None chooses by the learner's size.
    seed: of the bootstrap.
    trust_remote_code: models may run their own code.
    coherence: judges every response; None leaves the number out.
    """

    compared: int | None = None
    gradient_problems: int = 32
    gradient_parameters: str | None = None
    seed: int = 0
    on_cpu: bool = True
    progress: bool = True
    trust_remote_code: bool = False
    coherence: Coherence | None = None

    def compared_of(self, n: int) -> int:
        if self.compared is None:
            return min(COMPARED, n)
        if not 2 <= self.compared <= n:
            raise ConfigError(f"--compared {self.compared}: expected 2 to {n}, the samples a problem (--n).")
        return self.compared


def measure_with_models(
    sets: Sequence[RowSet], folders: Mapping[str, Path], learner: str, settings: Settings, bootstrap: Bootstrap
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Metrics by set, and over which parameters the gradients are (None without). One model is loaded at a time.

    Args:
        folders: by model's name; each set's model is in it.
    """

    def load(name: str) -> TokenModel:
        return TokenModel(name, folders[name], settings.on_cpu, settings.trust_remote_code)

    own = {d.name: _score(load(d.model), d, d.temperature, settings.progress) for d in sets if d.model != learner}
    model, temperature = load(learner), next(drawn.temperature for drawn in sets if drawn.name == learner)
    found = {}
    for drawn in sets:
        if drawn.model == learner:
            own[drawn.name] = _score(model, drawn, drawn.temperature, settings.progress)
        found[drawn.name] = _entropy(drawn, own[drawn.name], bootstrap)
        if drawn.name != learner:
            by_learner = _score(model, drawn, temperature, settings.progress)
            ratios = [mine[0] - its[0] for mine, its in zip(own[drawn.name], by_learner, strict=True)]
            found[drawn.name] |= _log_ratio(drawn, ratios, bootstrap)
    if not settings.gradient_problems:
        return found, None
    reader = GradientReader(model, settings.gradient_parameters, temperature)
    for drawn in sets:
        found[drawn.name]["gradients"] = _gradients(drawn, reader, settings, bootstrap)
    return found, reader.describe()


def _score(model: TokenModel, drawn: RowSet, temperature: float, progress: bool) -> list[Floats32]:
    """The model is freed on return, if nothing else holds it: models are large."""
    rows = drawn.every_row
    with tqdm(total=len(rows), desc=f"log-probabilities of {drawn.name}", unit="row", disable=not progress) as bar:
        return model.score(rows, temperature, bar)


def _by_problem(drawn: RowSet, values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[start : start + drawn.n] for start in range(0, len(values), drawn.n)]


def _entropy(drawn: RowSet, scored: Sequence[Floats32], bootstrap: Bootstrap) -> dict[str, Any]:
    """Mean over tokens, and by position: each range goes up to the next one's start."""
    starts = position_starts(max(values.shape[1] for values in scored))
    totals, counts = (np.zeros((len(drawn.rows), len(starts))) for _ in range(2))
    for problem, rows in enumerate(_by_problem(drawn, scored)):
        for values in rows:
            place = np.searchsorted(starts, np.arange(1, values.shape[1] + 1), side="right") - 1
            np.add.at(totals[problem], place, values[1].astype(float))
            np.add.at(counts[problem], place, 1.0)
    overall = bootstrap.means(totals.sum(axis=1), counts.sum(axis=1))
    by_position = {"starts": starts, **bootstrap.curve(bootstrap.means(totals, counts))}
    return {"entropy": bootstrap.point(overall), "entropy_by_position": by_position}


def position_starts(longest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ... up to the longest row."""
    powers = [1 << exponent for exponent in range(longest.bit_length())]
    return sorted({start for power in powers for start in (power, power + power // 2) if start <= longest})


def _log_ratio(drawn: RowSet, ratios: Sequence[Floats], bootstrap: Bootstrap) -> dict[str, Any]:
    """Sampler minus learner on the sampler's rows: its mean estimates KL(sampler || learner) per token."""
    groups = _by_problem(drawn, ratios)
    mean = float(np.concatenate(ratios).mean())
    as_it_is, shuffled = autocorrelation([lag_sums(rows, mean, LAGS) for rows in groups], bootstrap)
    totals, tokens = [sum(row.sum() for row in rows) for rows in groups], [sum(map(len, rows)) for rows in groups]
    return {
        "kl_to_learner": bootstrap.point(bootstrap.means(totals, tokens)),
        "autocorrelation": {"lags": list(range(1, LAGS + 1)), **bootstrap.curve(as_it_is)},
        "autocorrelation_shuffled": {"lags": list(range(1, LAGS + 1)), **bootstrap.curve(shuffled)},
        "autocorrelation_excess": bootstrap.point(as_it_is[:, 0] - shuffled[:, 0]),
    }


def _gradients(drawn: RowSet, reader: GradientReader, settings: Settings, bootstrap: Bootstrap) -> dict[str, Any]:
    """Means over the first problems; the others stay nan, which the bootstrap leaves out."""
    chosen = list(drawn.rows)[: settings.gradient_problems]
    bar = tqdm(chosen, desc=f"gradients of {drawn.name}", unit="group", disable=not settings.progress)
    values = {kind: np.full((len(drawn.rows), len(MEASURES)), np.nan) for kind in ("advantage", "score")}
    for place, name in enumerate(bar):
        rows = drawn.rows[name]
        products = reader.products(drawn.prompts[name], [row.token_ids for row in rows])
        for kind, found in problem_statistics(products, [row.score for row in rows]).items():
            values[kind][place] = [found[measure] for measure in MEASURES]
    summary = {}
    for kind, of_kind in values.items():
        means = bootstrap.means(of_kind)
        summary[kind] = {measure: bootstrap.point(means[:, n]) for n, measure in enumerate(MEASURES)}
    with_signal = int((~np.isnan(values["advantage"][:, 0])).sum())
    return {"num_problems": len(chosen), "num_with_signal": with_signal, **summary}


# ---- autocorrelation of a value that each token has -----------------------------------------------------------------


@dataclass(frozen=True)
class LagSums:
    """Sums over the rows of one problem, lags 1..L: products of values that far apart, what random order would give,
    and how many there are; then the sum of squares and the number of tokens."""

    products_L: Floats
    shuffled_L: Floats
    counts_L: Floats
    squares: float
    tokens: int


def lag_sums(rows: Sequence[Floats], mean: float, lags: int) -> LagSums:
    """Args: rows: one value a token; mean: over all tokens of all problems, taken off first."""
    products, shuffled, counts = np.zeros(lags), np.zeros(lags), np.zeros(lags)
    centred = [np.asarray(row, dtype=float) - mean for row in rows]
    for row in centred:
        pairs = np.maximum(len(row) - np.arange(1, lags + 1), 0)
        for lag in range(1, min(lags, len(row) - 1) + 1):
            products[lag - 1] += row[:-lag] @ row[lag:]
        shuffled += pairs * _product_of_two(row)
        counts += pairs
    return LagSums(products, shuffled, counts, float(sum(row @ row for row in centred)), sum(map(len, centred)))


def _product_of_two(row: Floats) -> float:
    """Mean product of two different tokens of the row: what any lag would show if their order did not matter. It holds
    the rows' own offsets, so a row that differs as a whole does not pass for correlation in time."""
    length = len(row)
    return float((row.sum() ** 2 - row @ row) / (length * (length - 1))) if length > 1 else 0.0


def autocorrelation(problems: Sequence[LagSums], bootstrap: Bootstrap) -> tuple[Floats, Floats]:
    """Autocorrelation at lags 1..L as it is and in random order, (1 + R, L) each; nan where nothing varies."""
    counts = np.array([sums.counts_L for sums in problems])
    squares, tokens = [sums.squares for sums in problems], [sums.tokens for sums in problems]
    variance = bootstrap.means(squares, tokens)[:, None]
    variance = np.where(variance > 0, variance, np.nan)
    as_it_is = bootstrap.means(np.array([sums.products_L for sums in problems]), counts) / variance
    return as_it_is, bootstrap.means(np.array([sums.shuffled_L for sums in problems]), counts) / variance
