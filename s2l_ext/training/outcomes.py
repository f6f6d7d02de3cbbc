"""How correct a step's rows are: by batch for the KL coefficient, by prompt for the curriculum."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

from s2l_ext.errors import DataError
from s2l_ext.training.batch_fields import LEARNER

EstimateFrom = Literal["learner_unguided", "learner", "all"]
"""Which rows an estimate of correctness reads."""


@dataclass(frozen=True)
class RolloutOutcome:
    """One finished session of prompt ``uid`` and its verdict: ``acc`` is None if the reward gave none, ``prefix_len``
    counts the guidance tokens that it started from."""

    uid: str
    acc: float | None
    source: str
    prefix_len: int = 0

    def counts_for(self, estimate_from: EstimateFrom) -> bool:
        """Whether an estimate reads its accuracy: ``learner_unguided`` rows, all of the ``learner``'s, or ``all``."""
        if estimate_from == "all":
            return True
        return self.source == LEARNER and (estimate_from == "learner" or self.prefix_len == 0)


def accuracy_of(extra_fields: dict[str, Any], strict: bool) -> float | None:
    """The reward function's ``acc``. If it returned a bare number, verl records that as the only field, ``acc``: it is
    the reward, maybe shaped, so it does not count as accuracy. ``strict``: a value that is no number in [0, 1] is an
    error; else it counts as none. Raises DataError: such a value."""
    returned = extra_fields.get("reward_extra_info") or {}
    value = returned.get("acc") if set(returned) != {"acc"} else None
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= 1.0:
        if not strict:
            return None
        raise DataError(
            f"the reward function returned acc={value!r}: it must be the verifier's correctness, a number in [0, 1], "
            "not a shaped reward. Return the shaped reward as 'score' and correctness as 'acc'."
        )
    return number


def require_accuracies(outcomes: list[RolloutOutcome], needed_by: str) -> list[float]:
    """The verifier's accuracy of every session. Raises DataError: a session without ``acc``, or no session at all."""
    values = [one.acc for one in outcomes if one.acc is not None]
    if not values or len(values) < len(outcomes):
        raise DataError(
            f"{needed_by} needs the verifier's correctness, but the reward function gave no 'acc' for "
            f"{len(outcomes) - len(values)} of {len(outcomes)} sessions. Return it beside 'score' for every answer."
        )
    return values


def batch_accuracy(outcomes: list[RolloutOutcome], needed_by: str) -> float:
    """Mean accuracy over all sessions of the batch, whichever model sampled them."""
    values = require_accuracies(outcomes, needed_by)
    return math.fsum(values) / len(values)


def steady_accuracy(outcomes: list[RolloutOutcome], share: float | None, needed_by: str) -> float | None:
    """Mean accuracy of the sessions, guided ones with the weight ``share`` and the others with the rest of 1: while an
    explorer hands over, their numbers change though nobody does. Guided ones alone give None, the others alone their
    mean. ``share`` None: as many as there are."""
    guided, plain = ([one for one in outcomes if bool(one.prefix_len) is kind] for kind in (True, False))
    if not outcomes or (share is not None and not plain):
        return None
    if share is None or not guided:
        return batch_accuracy(outcomes, needed_by)
    return share * batch_accuracy(guided, needed_by) + (1 - share) * batch_accuracy(plain, needed_by)


def pass_rates(outcomes: list[RolloutOutcome], estimate_from: EstimateFrom) -> dict[str, float]:
    """Mean accuracy by prompt ``uid``; prompts without a session that counts are left out."""
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for one in outcomes:
        if one.acc is not None and one.counts_for(estimate_from):
            by_prompt[one.uid].append(one.acc)
    return {uid: math.fsum(values) / len(values) for uid, values in by_prompt.items()}
