"""pass@k curves, where two of them cross, and which explorer they recommend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from s2l_ext.evaluation.intervals import FEWEST
from s2l_ext.evaluation.metrics import pass_at_k
from s2l_ext.studies.diversity.bootstrap import Bootstrap, Floats

HALF = 0.5


def pass_curves(num_correct: Sequence[int], n: int) -> Floats:
    """(P, n) unbiased pass@k of each problem, k = 1..n."""
    return np.array([[pass_at_k(n, correct, k) for k in range(1, n + 1)] for correct in num_correct])


def crossings(first_K: Floats, second_K: Floats) -> list[float]:
    """Where ``first - second`` changes sign, in k from 1, straight between two; to touch is not to cross."""
    difference = first_K - second_K
    places = np.flatnonzero(difference)
    found = []
    for left, right in pairwise(places):
        a, b = difference[left], difference[right]
        if a * b < 0:
            found.append(float(left + 1 + (a / (a - b) if right == left + 1 else 1)))
    return found


def crossing_summary(first: Floats, second: Floats, bootstrap: Bootstrap) -> dict[str, Any]:
    """Crossings of two curves (1 + R, K), and of how many resamples they are true.

    ``share_of_resamples`` is how many of them cross at all; ``ci95`` of the first crossing is over those.
    """
    every = [crossings(one, two) for one, two in zip(first[1:], second[1:], strict=True)]
    firsts = [found[0] for found in every if found]
    return {
        "at_k": crossings(first[0], second[0]),
        "share_of_resamples": len(firsts) / len(every),
        "ci95": [float(value) for value in np.quantile(firsts, [bootstrap.tail, 1 - bootstrap.tail])]
        if firsts
        else None,
        "difference_at_1": bootstrap.point(first[:, 0] - second[:, 0]),
        "difference_at_n": bootstrap.point(first[:, -1] - second[:, -1]),
    }


def half_position(shares_K: Floats) -> float:
    """The first position, from 1, that fewer than half of the pairs reach together; nan when none is."""
    below = np.flatnonzero(shares_K < HALF)
    return float(below[0] + 1) if below.size else float("nan")


def recommend(
    curves: Mapping[str, Floats], learner: str, explorers: Sequence[str], noise: str | None, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Which explorer finds a right answer most often within one group of n: ``explorer`` (None: no clear winner, or
    none better than the learner), ``clear`` and a ``sentence`` with the numbers.

    Args:
        curves: (1 + R, n) pass@k by set; the paired differences of the last column decide.
        noise: the learner at high temperature, to compare with; it is no candidate.
    """
    n = curves[learner].shape[1]
    at_n = {name: curve[:, -1] for name, curve in curves.items()}
    best, *rest = sorted(explorers, key=lambda name: -float(at_n[name][0]))
    gain = at_n[best] - at_n[learner]
    numbers = (
        f"pass@{n} {at_n[best][0]:.3f} against {at_n[learner][0]:.3f} of {learner}, {_difference(gain, bootstrap)}"
    )
    rivals = [name for name in rest if not bootstrap.is_clear(at_n[best] - at_n[name])]
    if not bootstrap.is_clear(gain):
        why = "the interval holds 0" if at_n[learner][0] < 1 else "the learner solves every problem; take harder ones"
        why = why if bootstrap.enough else f"fewer than {FEWEST} problems allow no verdict"
        return _verdict(None, False, f"No clear winner: {best} has {numbers}; {why}")
    if gain[0] < 0:
        return _verdict(None, True, f"None of them: {best}, the best explorer, has {numbers}")
    if rivals:
        against = f"{rivals[0]} ({at_n[rivals[0]][0]:.3f}, {_difference(at_n[best] - at_n[rivals[0]], bootstrap)})"
        return _verdict(None, False, f"No clear winner: {best} has {numbers}, but is not clearly better than {against}")
    return _verdict(best, True, f"Use {best}: {numbers}{_against_noise(at_n, best, noise, bootstrap)}")


def _against_noise(at_n: Mapping[str, Floats], best: str, noise: str | None, bootstrap: Bootstrap) -> str:
    if noise is None:
        return ""
    more = at_n[best] - at_n[noise]
    clear = "" if bootstrap.is_clear(more) else "; noise in the tokens may do as well"
    return f"; over {noise} {_difference(more, bootstrap)}{clear}"


def _difference(means: Floats, bootstrap: Bootstrap) -> str:
    found = bootstrap.point(means)
    low, high = found["ci95"]
    return f"{found['value']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _verdict(explorer: str | None, clear: bool, sentence: str) -> dict[str, Any]:
    return {"explorer": explorer, "clear": clear, "sentence": f"{sentence}."}
