"""pass@k without bias (Chen et al. 2021, arXiv 2107.03374): one problem, and validation steps by data source."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that at least one of ``k`` samples drawn without replacement is right (Chen et al. 2021), unbiased.

    The quotient of two whole numbers, so it is the float nearest to the exact value.

    Raises:
        ValueError: ``k`` exceeds ``num_samples``, or a number is out of range.
    """
    if num_samples < 1 or not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct={num_correct} of num_samples={num_samples}: expected 0 <= correct <= samples.")
    if k < 1:
        raise ValueError(f"k={k} must be at least 1.")
    if k > num_samples:
        raise ValueError(f"k={k} exceeds num_samples={num_samples}: pass@{k} needs at least {k} samples a problem.")
    every = math.comb(num_samples, k)
    return (every - math.comb(num_samples - num_correct, k)) / every


def validation_pass_at_k(
    data_sources: Sequence[str],
    uids: Sequence[str],
    rewards: Mapping[str, Sequence[Any]],
    planned: Mapping[tuple[str, str], int],
) -> dict[str, float]:
    """``s2l/val/<source>/pass@k`` for k = 1, 2, 4, ... and the number of samples of a problem.

    Nothing for a source with one sample a problem (verl's mean is pass@1), and for one whose ``acc`` is not the
    verifier's: not 0 or 1 everywhere, or all that the reward function returned (a bare reward, which verl calls acc).
    ``planned`` counts the samples of each ``(source, uid)``: a session that failed has none and counts as wrong, as in
    verl's ``acc``.
    """
    if "acc" not in rewards or set(rewards) <= {"acc", "reward"}:
        return {}
    right: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for source, uid, value in zip(data_sources, uids, rewards["acc"], strict=True):
        right[str(source), str(uid)].append(value)
    counted = {place: max(count, len(right.get(place, ()))) for place, count in planned.items()}
    counted |= {place: len(values) for place, values in right.items() if place not in planned}
    found: dict[str, float] = {}
    for source in sorted({source for source, _ in right}):
        places = [place for place in counted if place[0] == source]
        values = [value for place in places for value in right.get(place, ())]
        most = min(counted[place] for place in places)
        if most > 1 and all(value in (0, 1) for value in values):
            correct = {place: sum(map(int, right.get(place, ()))) for place in places}
            for k in ks_up_to(most):
                passed = (pass_at_k(counted[place], correct[place], k) for place in places)
                found[f"s2l/val/{source}/pass@{k}"] = fmean(passed)
    return found


def ks_up_to(most: int) -> list[int]:
    """1, 2, 4, ... and ``most``."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
