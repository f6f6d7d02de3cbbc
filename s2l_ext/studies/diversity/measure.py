"""Which explorer should this learner use? Diversity of several models' samples on the same problems.

S2L-PO (arXiv 2605.30789) claims that a smaller model's samples differ more from each other than the learner's, that
what sets them apart is correlated in time where token noise is not, and that this helps. Each claim is a number here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from s2l_ext import __version__
from s2l_ext.data.tokenizers import load_tokenizer
from s2l_ext.errors import DataError
from s2l_ext.evaluation.samples import Sample
from s2l_ext.studies.diversity.curves import (
    RESAMPLES,
    Bootstrap,
    Floats,
    half_position,
    pass_curves,
    recommend,
)
from s2l_ext.studies.diversity.models import Coherence, Settings, measure_with_models
from s2l_ext.studies.diversity.sets import EXPLORER, NOISE, RowSet
from s2l_ext.studies.diversity.text import distinct_answer_ratio, edit_diversity, prefix_match, self_bleu

SCHEMA_VERSION = 1
PREFIX_POSITIONS = 256


def measure(sets: Sequence[RowSet], learner: str, folders: Mapping[str, Path], settings: Settings) -> dict[str, Any]:
    """Every number about these sets; their shape is in docs/diversity.md.

    Args:
        sets: the learner's and at least one explorer's, of the same problems.
        folders: each model's folder, by its name; empty leaves out what needs forward passes.

    Raises:
        DataError: there is one problem.
    """
    n, problems = sets[0].n, sorted(sets[0].rows)
    if len(problems) < 2:
        raise DataError(f"{sets[0].path}: 1 problem; an interval over problems needs at least 2.")
    compared, bootstrap = settings.compared_of(n), Bootstrap(len(problems), settings.seed)
    # files hold samples as they finished; the bootstrap pairs problems by place
    sets = [replace(drawn, rows={name: drawn.rows[name] for name in problems}) for drawn in sets]
    right = {drawn.name: [sum(row.correct for row in rows) for rows in drawn.rows.values()] for drawn in sets}
    curves = {name: pass_curves(counts, n) for name, counts in right.items()}
    found, parameters = {}, None
    for drawn in sets:
        numbers = _from_samples(drawn, bootstrap.means(curves[drawn.name]), compared, bootstrap, settings.progress)
        if settings.coherence:
            steps = _steps(drawn, load_tokenizer(str(folders[learner]), "--coherence"), settings.coherence)
            numbers |= {"coherence": bootstrap.point(bootstrap.means(*steps))}
        found[drawn.name] = _describe(drawn) | numbers
    if folders:
        more, parameters = measure_with_models(sets, folders, learner, settings, bootstrap)
        found = {name: values | more[name] for name, values in found.items()}
    explorers = [drawn.name for drawn in sets if drawn.role == EXPLORER]
    noise = next((drawn.name for drawn in sets if drawn.role == NOISE), None)
    return {
        "schema_version": SCHEMA_VERSION,
        "package_version": __version__,
        "learner": learner,
        "num_problems": len(problems),
        "n": n,
        "compared": compared,
        "interval": f"95 % bootstrap over problems, {RESAMPLES} resamples, seed {settings.seed}",
        "recommendation": recommend(curves, learner, explorers, noise, bootstrap),
        "gradient_parameters": parameters,
        "sets": found,
    }


def _steps(drawn: RowSet, tokenizer: Any, judge: Coherence) -> tuple[list[int], list[int]]:
    """Of each problem, steps that follow from the ones before, and all steps."""
    prompts = {name: str(tokenizer.decode(list(map(int, ids)))) for name, ids in drawn.prompts.items()}
    found = [[judge(prompts[name], row.text) for row in rows] for name, rows in drawn.rows.items()]
    followed, steps = ([sum(pair[at] for pair in pairs) for pairs in found] for at in (0, 1))
    return followed, steps


def _describe(drawn: RowSet) -> dict[str, Any]:
    return {
        "role": drawn.role,
        "model": drawn.model,
        "samples": str(drawn.path),
        "temperature": drawn.temperature,
        "top_p": float(drawn.fingerprint["top_p"]),
        "fingerprint": drawn.fingerprint,
    }


def _from_samples(drawn: RowSet, passed: Floats, compared: int, bootstrap: Bootstrap, progress: bool) -> dict[str, Any]:
    """What needs no model."""
    longest = max(len(row.token_ids) for rows in drawn.rows.values() for row in rows)
    positions = min(PREFIX_POSITIONS, longest)
    bar = tqdm(drawn.rows.values(), desc=f"texts of {drawn.name}", unit="problem", disable=not progress)
    by_problem = [_of_problem(rows, compared, positions) for rows in bar]
    shares = bootstrap.means(np.array([prefix for _, prefix in by_problem]))
    scalars = {
        name: bootstrap.point(bootstrap.means([values[name] for values, _ in by_problem])) for name in by_problem[0][0]
    }
    return {
        "pass_at_1": bootstrap.point(passed[:, 0]),
        "pass_at_n": bootstrap.point(passed[:, -1]),
        **scalars,
        "prefix_half": bootstrap.point(np.array([half_position(row) for row in shares])),
        "pass_at_k": {"k": list(range(1, drawn.n + 1)), **bootstrap.curve(passed)},
        "prefix_match": {"positions": list(range(1, positions + 1)), **bootstrap.curve(shares)},
    }


def _of_problem(rows: Sequence[Sample], compared: int, positions: int) -> tuple[dict[str, float], Floats]:
    tokens, first = [row.token_ids for row in rows], rows[:compared]
    scalars = {
        "distinct_answers": distinct_answer_ratio([row.answer for row in rows]),
        "self_bleu": self_bleu([row.text for row in first]),
        "edit_diversity": edit_diversity([row.token_ids for row in first]),
        "answered": float(np.mean([bool(row.answer) for row in rows])),
        "mixed_groups": float(0 < sum(row.correct for row in rows) < len(rows)),
        "mean_length": float(np.mean([len(row) for row in tokens])),
        "truncation_rate": float(np.mean([row.truncated for row in rows])),
    }
    return scalars, prefix_match(tokens, positions)
