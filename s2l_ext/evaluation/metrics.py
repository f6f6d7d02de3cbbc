"""Numbers from graded samples: pass@k, majority votes, and how sure they are."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from s2l_ext.evaluation.intervals import mean_interval
from s2l_ext.utils.pass_at_k import pass_at_k as pass_at_k


def majority_correct(answers: Sequence[str | None], correct: Sequence[bool]) -> bool:
    """Whether the most frequent answer is right. No answer is no vote; a tie goes to the answer that came first."""
    votes = Counter(answer for answer in answers if answer)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]
    return correct[answers.index(winner)]


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean over problems; None for a single problem."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def summarize(problems: Sequence[dict[str, Any]], ks: Sequence[int]) -> dict[str, Any]:
    """Numbers over all problems; every problem weighs the same. Each has ``num_samples``, ``num_correct``, ``lengths``
    (tokens), ``num_truncated``, and one value a sample, in order, in ``answers``, ``correct`` and ``scores``. No k is
    above the number of samples."""
    shares = [row["num_correct"] / row["num_samples"] for row in problems]
    lengths = [row["lengths"] for row in problems]
    cut = [row["num_truncated"] / row["num_samples"] for row in problems]
    voted = any(answer for row in problems for answer in row["answers"])
    passed = {k: [pass_at_k(row["num_samples"], row["num_correct"], k) for row in problems] for k in ks}
    right = {k: [float(majority_correct(r["answers"][:k], r["correct"][:k])) for r in problems] for k in ks}
    return {
        "accuracy": fmean(shares),
        "standard_error": standard_error(shares),
        "ci95": None if (found := mean_interval(shares)) is None else list(found),
        **_average_by_k("pass_at_k", passed),
        **_average_by_k("maj_at_k", right if voted else None),
        "mean_score": fmean(fmean(row["scores"]) for row in problems),
        "mean_length": fmean(map(fmean, lengths)),
        "mean_length_standard_error": standard_error(list(map(fmean, lengths))),
        "truncation_rate": fmean(cut),
        "truncation_rate_standard_error": standard_error(cut),
        "num_problems": len(problems),
        "num_samples": sum(map(len, lengths)),
        "num_tokens": sum(map(sum, lengths)),
    }


def by_group(problems: Sequence[dict[str, Any]], column: str, ks: Sequence[int]) -> dict[str, Any]:
    """:func:`summarize` for each value of ``column`` (2 before 10 before "hard"); problems without one are left out."""
    names = sorted({row[column] for row in problems if column in row}, key=numbers_first)
    return {name: summarize([row for row in problems if row.get(column) == name], ks) for name in names}


def numbers_first(name: str) -> tuple[bool, float, str]:
    """A key to sort names by: numbers by their size, then the others as text."""
    number = re.fullmatch(r"-?\d+(\.\d+)?", name)
    return number is None, float(name) if number else 0.0, name


def _average_by_k(name: str, values: dict[int, list[float]] | None) -> dict[str, Any]:
    """Mean and standard error over problems by k; None for both where there is nothing to average."""
    means = None if values is None else {str(k): fmean(each) for k, each in values.items()}
    errors = None if values is None else {str(k): standard_error(each) for k, each in values.items()}
    return {name: means, f"{name}_standard_error": errors}
