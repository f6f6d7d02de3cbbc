"""Evaluations of several seeds of two configurations, pooled: intervals over seeds, and over seeds and problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation.compare import measures_of, read_result, require_same, require_same_problems
from s2l_ext.evaluation.seeds import FEWEST_SEEDS, accuracy_over_seeds, hierarchical, independent, paired, sentence

Side = list[dict[str, Any]]
"""Results of one configuration's seeds."""


def compare_seeds(
    a: Sequence[Path], b: Sequence[Path], allowed: tuple[str, ...] = (), seed: int = 0, pair: bool = True
) -> dict[str, Any]:
    """B minus A in accuracy and pass@k, each file one seed of its side.

    Args:
        allowed: sampling settings that may differ.
        seed: of the bootstrap.
        pair: the first of A with the first of B, and so on, where both have as many; else Welch's t.

    Raises:
        ConfigError: a side has one file, or the bootstrap's seed is negative.
        DataError: a file is no result of ``s2l eval``, two are of one model, or they differ in data, problems or
            sampling.
    """
    if seed < 0:
        raise ConfigError(f"--seed {seed} must be at least 0.")
    for name, files in (("A", a), ("B", b)):
        if len(files) < FEWEST_SEEDS:
            raise ConfigError(
                f"{name} has {len(files)} file: an interval over seeds needs at least {FEWEST_SEEDS}. Give one "
                "evaluation for each seed, A1 A2 A3 -- B1 B2 B3."
            )
    sides = [_read(files, a[0], allowed) for files in (a, b)]
    pairs = pair and len(a) == len(b)
    ks = [k for k in sides[0][0]["pass_at_k"] if all(k in one["pass_at_k"] for side in sides for one in side)]
    of_a, of_b = (np.array([_problems(one, ks) for one in side]) for side in sides)  # (seeds, problems, measures)
    names = ["accuracy", *(f"pass@{k}" for k in ks)]
    found = {name: _measure(of_a[:, :, at], of_b[:, :, at], pairs, seed) for at, name in enumerate(names)}
    said = sentence("B", _of(of_a[:, :, 0], of_b[:, :, 0], pairs), "A")
    return {
        **{name: {"files": [str(file) for file in files]} for name, files in (("a", a), ("b", b))},
        "paired": pairs,
        "num_problems": of_a.shape[1],
        "measures": found,
        "sentence": said,
    }


def _read(files: Sequence[Path], first: Path, allowed: tuple[str, ...]) -> Side:
    """Results that all agree with the first file's, of different models."""
    base, found, models = read_result(first), [], dict[str, Path]()
    for file in files:
        result = read_result(file)
        require_same(first, base, file, result, allowed)
        require_same_problems(first, _rows(base), file, _rows(result))
        model = str(result["fingerprints"].get("model") or file.resolve())
        if model in models:
            raise DataError(
                f"{file} is of the same model as {models[model]}: that is no other seed. Give one evaluation of each "
                "trained model."
            )
        models[model] = file
        found.append(result)
    return found


def _rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["prompt_id"]: row for row in result["problems"]}


def _problems(result: dict[str, Any], ks: list[str]) -> list[np.ndarray]:
    return [measures_of(row, ks) for _, row in sorted(_rows(result).items())]


def _of(a_S_N: np.ndarray, b_S_N: np.ndarray, pairs: bool) -> Any:
    compare = paired if pairs else independent
    return compare(b_S_N.mean(axis=1).tolist(), a_S_N.mean(axis=1).tolist())


def _measure(a_S_N: np.ndarray, b_S_N: np.ndarray, pairs: bool, seed: int) -> dict[str, Any]:
    """Each side over seeds (Student's t) and over seeds and problems (bootstrap), and their difference."""
    sides = {
        name: asdict(accuracy_over_seeds(table.mean(axis=1).tolist()))
        | {"ci95_problems": hierarchical(table, seed), "seeds": table.mean(axis=1).tolist()}
        for name, table in (("a", a_S_N), ("b", b_S_N))
    }
    return sides | {"difference": asdict(_of(a_S_N, b_S_N, pairs))}
