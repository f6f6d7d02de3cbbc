"""Two evaluations of the same problems, paired by problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation.intervals import paired_intervals, verdict
from s2l_ext.evaluation.metrics import pass_at_k
from s2l_ext.utils import json_text

SAME = ("data", "benchmark", "reward", "limit")


Counts = dict[str, dict[str, Any]]
"""``num_samples`` and ``num_correct`` by problem."""


def compare(a: Path, b: Path, allowed: tuple[str, ...] = (), seed: int = 0) -> dict[str, Any]:
    """B minus A in accuracy and pass@k with 95 % bootstrap intervals over problems, and wins of B by problem.

    ``verdict`` is "clear" where the interval of the accuracy leaves out 0, "not clear" where it does not, and
    "too few" where it does but fewer than six problems differ.

    Args:
        allowed: sampling settings that may differ, such as ``seed``.

    Raises:
        ConfigError: the seed is negative.
        DataError: a file is no result of ``s2l eval``, or the two differ in data, problems or sampling.
    """
    if seed < 0:
        raise ConfigError(f"--seed {seed} must be at least 0.")
    first, second = read_result(a), read_result(b)
    require_same(a, first, b, second, allowed)
    of_a, of_b = ({row["prompt_id"]: row for row in result["problems"]} for result in (first, second))
    require_same_problems(a, of_a, b, of_b)
    ks = [k for k in first["pass_at_k"] if k in second["pass_at_k"]]
    values = np.array([measures_of(of_b[name], ks) - measures_of(of_a[name], ks) for name in sorted(of_a)])
    means, (low, high) = values.mean(axis=0), paired_intervals(values, seed)
    shares = values[:, 0]
    differing = int(np.count_nonzero(shares))
    return {
        "a": _summarize_side(a, first),
        "b": _summarize_side(b, second),
        "difference": float(means[0]),
        "ci95": [float(low[0]), float(high[0])],
        "verdict": verdict((float(low[0]), float(high[0])), differing),
        "wins": int((shares > 0).sum()),
        "losses": int((shares < 0).sum()),
        "ties": int((shares == 0).sum()),
        "num_problems": len(shares),
        "pass_at_k": {k: [first["pass_at_k"][k], second["pass_at_k"][k]] for k in ks},
        "pass_at_k_difference": {k: float(means[i]) for i, k in enumerate(ks, 1)},
        "pass_at_k_ci95": {k: [float(low[i]), float(high[i])] for i, k in enumerate(ks, 1)},
    }


def read_result(path: Path) -> dict[str, Any]:
    try:
        result = json_text.loads(path.read_text(encoding="utf-8"))
        for key in ("accuracy", "problems", "fingerprints", "pass_at_k"):
            result[key]
        result["fingerprints"]["sampling"]
        _require_counts(path, result)
        return dict(result)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: not a result that s2l eval wrote ({reason}).") from error


def _require_counts(path: Path, result: dict[str, Any]) -> None:
    """Raises DataError for counts that no evaluation can have, with the problem."""
    passed = result["pass_at_k"]
    if not isinstance(passed, dict) or not all(k.isdecimal() and int(k) and _is_share(v) for k, v in passed.items()):
        raise DataError(f"{path}: pass_at_k is {passed!r}, not shares by k. Run s2l eval again.")
    if not _is_share(result["accuracy"]):
        raise DataError(f"{path}: accuracy is {result['accuracy']!r}, not a share of 0 to 1. Run s2l eval again.")
    if not result["problems"]:
        raise DataError(f"{path}: no problems. An evaluation has at least one. Run s2l eval again.")
    most, seen = max(map(int, passed), default=1), set[str]()
    for row in result["problems"]:
        name, samples, correct = row["prompt_id"], row["num_samples"], row["num_correct"]
        wrong = _impossible(samples, correct, most) or ("stands there twice" if name in seen else "")
        if wrong:
            raise DataError(f"{path}: problem {name} {wrong}. No evaluation counts so. Run s2l eval again.")
        seen.add(name)


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _impossible(samples: Any, correct: Any, most: int) -> str:
    if type(samples) is not int or type(correct) is not int:
        return f"has num_samples {samples!r} and num_correct {correct!r}, not whole numbers"
    if samples < 1 or not 0 <= correct <= samples:
        return f"has {correct} right of {samples} samples"
    return f"has {samples} samples, pass@{most} needs {most}" if samples < most else ""


def require_same(a: Path, first: dict[str, Any], b: Path, second: dict[str, Any], allowed: tuple[str, ...]) -> None:
    one, two = first["fingerprints"], second["fingerprints"]
    for name in SAME:
        if one.get(name) != two.get(name):
            raise DataError(
                f"{a} and {b} differ in {name}: {one.get(name)} and {two.get(name)}. A paired comparison needs the "
                f"same {name}; run s2l eval for both with the same."
            )
    settings = {*one["sampling"], *two["sampling"]}
    unknown = sorted(set(allowed) - settings)
    if unknown:
        raise DataError(f"--allow {unknown[0]}: no sampling setting. Settings: {', '.join(sorted(settings))}.")
    different = [n for n in sorted(settings - set(allowed)) if one["sampling"].get(n) != two["sampling"].get(n)]
    if different:
        shown = ", ".join(f"{n} {one['sampling'].get(n)} / {two['sampling'].get(n)}" for n in different)
        raise DataError(
            f"{a} and {b} were sampled differently: {shown}. Run s2l eval with the same settings, or accept it with "
            f"{' '.join(f'--allow {name}' for name in different)}."
        )


def require_same_problems(a: Path, of_a: Counts, b: Path, of_b: Counts) -> None:
    if of_a.keys() != of_b.keys():
        raise DataError(
            f"{a} has {len(of_a)} problems, {b} {len(of_b)}, and {len(of_a.keys() & of_b.keys())} are in both. A "
            "paired comparison needs the same problems: run s2l eval for both on the same data and --limit."
        )


def measures_of(row: dict[str, Any], ks: list[str]) -> np.ndarray:
    """Accuracy, then pass@k for each k, of one problem."""
    samples, correct = row["num_samples"], row["num_correct"]
    return np.array([correct / samples, *(pass_at_k(samples, correct, int(k)) for k in ks)])


def _summarize_side(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    kept = ("model", "accuracy", "standard_error", "mean_length", "truncation_rate")
    return {"file": str(path), **{name: result.get(name) for name in kept}}
