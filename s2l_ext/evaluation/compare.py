"""Two evaluations of the same problems, paired by problem; and the seeds of two configurations, pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation.intervals import paired_intervals, verdict
from s2l_ext.evaluation.metrics import pass_at_k
from s2l_ext.evaluation.seeds import FEWEST_SEEDS, accuracy_over_seeds, hierarchical, independent, paired, sentence
from s2l_ext.utils import json_text

SAME = ("data", "benchmark", "reward", "limit")


def compare(a: Path, b: Path, allowed: tuple[str, ...] = (), seed: int = 0) -> dict[str, Any]:
    """B minus A in accuracy and pass@k with 95 % bootstrap intervals over problems, and wins of B by problem. Sampling
    settings in ``allowed`` may differ. Raises DataError: a file is no result of ``s2l eval``, or the two do not
    compare.

    ``verdict`` is "clear" where the interval of the accuracy leaves out 0, "not clear" where it does not, and "too few"
    where it does but fewer than six problems differ.
    """
    if seed < 0:
        raise ConfigError(f"--seed {seed} must be at least 0.")
    first, second = read_result(a), read_result(b)
    require_same(a, first, b, second, allowed)
    require_same_problems(a, first, b, second)
    ks = [k for k in first["pass_at_k"] if k in second["pass_at_k"]]
    values = measures(second, ks) - measures(first, ks)
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


def require_same_problems(a: Path, first: dict[str, Any], b: Path, second: dict[str, Any]) -> None:
    of_a, of_b = ({row["prompt_id"] for row in result["problems"]} for result in (first, second))
    if of_a != of_b:
        raise DataError(
            f"{a} has {len(of_a)} problems, {b} {len(of_b)}, and {len(of_a & of_b)} are in both. A paired comparison "
            "needs the same problems: run s2l eval for both on the same data and --limit."
        )


def measures(result: dict[str, Any], ks: list[str]) -> np.ndarray:
    """(problems by id, 1 + K): accuracy, then pass@k for each k."""
    rows = sorted(result["problems"], key=lambda row: row["prompt_id"])
    counts = [(row["num_samples"], row["num_correct"]) for row in rows]
    return np.array([[right / n, *(pass_at_k(n, right, int(k)) for k in ks)] for n, right in counts])


def _summarize_side(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    kept = ("model", "accuracy", "standard_error", "mean_length", "truncation_rate")
    return {"file": str(path), **{name: result.get(name) for name in kept}}


# ---- seeds ---------------------------------------------------------------------------------------------------------


def compare_seeds(
    a: Sequence[Path], b: Sequence[Path], allowed: tuple[str, ...] = (), seed: int = 0, pair: bool = True
) -> dict[str, Any]:
    """B minus A in accuracy and pass@k, each file one seed of its side. ``pair``: the first of A with the first of B,
    and so on, where both have as many; else Welch's t. ``seed`` is the bootstrap's. Raises as :func:`compare`, and for
    a side of one file (ConfigError) and two files of one model (DataError)."""
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
    tables = [np.array([measures(one, ks) for one in side]) for side in sides]  # (seeds, problems, measures) each
    base, own = (table.mean(axis=1).T.tolist() for table in tables)
    gaps = [(paired if pairs else independent)(*values) for values in zip(own, base, strict=True)]
    found = {}
    for at, name in enumerate(["accuracy", *(f"pass@{k}" for k in ks)]):
        found[name] = {"difference": asdict(gaps[at])}
        for side, table in zip("ab", tables, strict=True):
            values, problems = table[:, :, at].mean(axis=1).tolist(), hierarchical(table[:, :, at], seed)
            found[name][side] = asdict(accuracy_over_seeds(values)) | {"ci95_problems": problems, "seeds": values}
    return {
        **{name: {"files": [str(file) for file in files]} for name, files in (("a", a), ("b", b))},
        "paired": pairs,
        "num_problems": tables[0].shape[1],
        "measures": found,
        "sentence": sentence("B", gaps[0], "A"),
    }


def _read(files: Sequence[Path], first: Path, allowed: tuple[str, ...]) -> list[dict[str, Any]]:
    """Results that all agree with the first file's, of different models."""
    base, found, models = read_result(first), [], dict[str, Path]()
    for file in files:
        result = read_result(file)
        require_same(first, base, file, result, allowed)
        require_same_problems(first, base, file, result)
        model = str(result["fingerprints"].get("model") or file.resolve())
        if model in models:
            raise DataError(
                f"{file} is of the same model as {models[model]}: that is no other seed. Give one evaluation of each "
                "trained model."
            )
        models[model] = file
        found.append(result)
    return found
