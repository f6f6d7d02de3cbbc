"""What only the models can tell of the samples: entropy, distance to the learner, and the gradients they give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from s2l_ext.studies.diversity.bootstrap import Bootstrap, Floats
from s2l_ext.studies.diversity.gradients import MEASURES, GradientReader, problem_statistics
from s2l_ext.studies.diversity.series import autocorrelation, lag_sums
from s2l_ext.studies.diversity.sets import RowSet
from s2l_ext.studies.diversity.tokens import Floats32, TokenModel

LAGS = 20


@dataclass(frozen=True)
class GradientSettings:
    """The first ``problems`` problems by id, 0 for none; ``parameters`` None chooses by the learner's size."""

    problems: int = 32
    parameters: str | None = None


def measure_with_models(
    sets: Sequence[RowSet],
    folders: Mapping[str, Path],
    learner: str,
    gradients: GradientSettings,
    bootstrap: Bootstrap,
    on_cpu: bool,
    progress: bool,
    trust_remote_code: bool = False,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Metrics by set, and over which parameters the gradients are (None without). One model is loaded at a time.

    Args:
        folders: by model's name; each set's model is in it.
    """
    own: dict[str, list[Floats32]] = {}
    for name in [name for name in folders if name != learner]:
        model = TokenModel(name, folders[name], on_cpu, trust_remote_code)
        for drawn in (drawn for drawn in sets if drawn.model == name):
            own[drawn.name] = _score(model, drawn, drawn.temperature, progress)
        del model
    model = TokenModel(learner, folders[learner], on_cpu, trust_remote_code)
    temperature = next(drawn.temperature for drawn in sets if drawn.name == learner)
    own |= {d.name: _score(model, d, d.temperature, progress) for d in sets if d.model == learner}
    found = {drawn.name: _entropy(drawn, own[drawn.name], bootstrap) for drawn in sets}
    for drawn in (drawn for drawn in sets if drawn.name != learner):
        by_learner = _score(model, drawn, temperature, progress)
        ratios = [mine[0] - its[0] for mine, its in zip(own[drawn.name], by_learner, strict=True)]
        found[drawn.name] |= _log_ratio(drawn, ratios, bootstrap)
    if not gradients.problems:
        return found, None
    reader = GradientReader(model, gradients.parameters, temperature)
    for drawn in sets:
        found[drawn.name]["gradients"] = _gradients(drawn, reader, gradients.problems, bootstrap, progress)
    return found, reader.describe()


def _score(model: TokenModel, drawn: RowSet, temperature: float, progress: bool) -> list[Floats32]:
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


def _gradients(
    drawn: RowSet, reader: GradientReader, problems: int, bootstrap: Bootstrap, progress: bool
) -> dict[str, Any]:
    """Means over the first problems; the others stay nan, which the bootstrap leaves out."""
    chosen = list(drawn.rows)[:problems]
    kinds = ("advantage", "score")
    values = {kind: np.full((len(drawn.rows), len(MEASURES)), np.nan) for kind in kinds}
    for place, name in enumerate(tqdm(chosen, desc=f"gradients of {drawn.name}", unit="group", disable=not progress)):
        rows = drawn.rows[name]
        products = reader.products(drawn.prompts[name], [row.token_ids for row in rows])
        found = problem_statistics(products, [row.score for row in rows])
        for kind in kinds:
            values[kind][place] = [found[kind][measure] for measure in MEASURES]
    means = {kind: bootstrap.means(values[kind]) for kind in kinds}
    summary = {kind: {m: bootstrap.point(means[kind][:, c]) for c, m in enumerate(MEASURES)} for kind in kinds}
    with_signal = int((~np.isnan(values["advantage"][:, 0])).sum())
    return {"num_problems": len(chosen), "num_with_signal": with_signal, **summary}
