"""The curriculum in a run: the prompts of each step, what they showed, and the line that is kept of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s2l_ext.errors import DataError
from s2l_ext.methods.curriculum.config import CurriculumConfig
from s2l_ext.methods.curriculum.gaussian import GaussianCurriculum
from s2l_ext.methods.curriculum.pass_rates import HISTOGRAM_BINS, PassRates, bin_of
from s2l_ext.methods.curriculum.sampler import CurriculumSampler
from s2l_ext.methods.kl.rules import needs_accuracy
from s2l_ext.training.outcomes import Session, pass_rates
from s2l_ext.training.pending_prompts import PromptPlan

FILE_NAME = "curriculum.jsonl"


class StepPrompts:
    """Links verl's prompt ``uid`` to positions in the data set and feeds pass rates back.

    Args:
        config: the ``s2l.curriculum`` block.
        sampler: draws the prompts of each step.
    """

    def __init__(self, config: CurriculumConfig, sampler: CurriculumSampler) -> None:
        self.config = config
        self.sampler = sampler
        self.plans: Mapping[str, PromptPlan] = {}
        self.observed: dict[int, float] = {}
        self.before: dict[str, Any] = {}
        self._draws: list[dict[str, Any]] = []

    @property
    def rates(self) -> PassRates | None:
        """None for a curriculum of one's own that keeps no :class:`PassRates`."""
        return getattr(self.sampler.curriculum, "pass_rates", None)

    def drawn(self, uids: Sequence[str]) -> list[int]:
        """Prompts are fetched: ``uids`` name them in the order in which the sampler gave them. Returns their positions
        in the data set."""
        indices = self.sampler.take_handed()
        if len(uids) != len(indices):
            raise RuntimeError(f"verl fetched {len(uids)} prompts, the curriculum gave {len(indices)}")
        self._draws.append(self._before_rollouts(indices))
        return indices

    def train_on(self, plans: Mapping[str, PromptPlan]) -> None:
        """The step trains on these prompts, drawn at this step or an earlier one."""
        self.plans, self.observed = plans, {}
        self.before, self._draws = _together(self._draws), []

    def observe(self, sessions: list[Session]) -> None:
        """Update the curriculum with the step's pass rates.

        Raises:
            DataError: the curriculum reads accuracies and the reward function gave none.
        """
        missing = sum(session.acc is None for session in sessions)
        needing = needs_accuracy(None, self.config)
        if missing and needing:
            raise DataError(
                f"{needing[0]} needs the verifier's correctness, but the reward function gave no 'acc' for {missing} "
                f"of {len(sessions)} sessions. Return it beside 'score' for every answer."
            )
        by_uid = pass_rates(sessions, self.config.rows)
        by_index: dict[int, list[float]] = defaultdict(list)  # a prompt can be drawn again before it is trained on
        for uid, rate in by_uid.items():
            by_index[_index(self.plans[uid])].append(rate)
        self.observed = {index: math.fsum(rates) / len(rates) for index, rates in by_index.items()}
        if self.observed:
            indices = np.array(list(self.observed), dtype=np.int64)
            self.sampler.curriculum.update(indices, np.array(list(self.observed.values())))

    def metrics(self) -> dict[str, float]:
        """``s2l/curriculum/...`` after the step's update."""
        own = getattr(self.sampler.curriculum, "metrics", dict)()
        counts = {"drawn_prompts": float(len(self.plans)), "updated_prompts": float(len(self.observed))}
        return {f"s2l/curriculum/{name}": value for name, value in {**counts, **own}.items()}

    def line(self) -> dict[str, Any]:
        """What ``curriculum.jsonl`` keeps of the step."""
        rates, drawn = self.rates, [plan.index for plan in self.plans.values()]
        return {
            "type": self.config.type,
            "indices": drawn,
            "pass_rates": [self.observed.get(_index(plan)) for plan in self.plans.values()],
            "drawn_at": [plan.step for plan in self.plans.values()],
            "histogram": None if rates is None else rates.histogram().tolist(),
            **self.before,
            "visits": None if rates is None else rates.visit_counts().tolist(),
        }

    def _before_rollouts(self, indices: list[int]) -> dict[str, Any]:
        """Draw probability by pass-rate bin, and the drawn prompts by bin, as they were when they were drawn."""
        curriculum, rates = self.sampler.curriculum, self.rates
        if rates is None:
            return {"bucket_mass": None, "bucket_draws": None}
        mass = curriculum.bucket_mass().tolist() if isinstance(curriculum, GaussianCurriculum) else None
        of_drawn = bin_of(rates.rates[indices], HISTOGRAM_BINS)
        return {"bucket_mass": mass, "bucket_draws": np.bincount(of_drawn, minlength=HISTOGRAM_BINS).tolist()}


def _together(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """One entry for all draws since the step before: those of an asynchronous run may be several."""
    counted = [draw["bucket_draws"] for draw in draws if draw["bucket_draws"] is not None]
    if not counted:
        return {"bucket_mass": None, "bucket_draws": None}
    return {"bucket_mass": draws[0]["bucket_mass"], "bucket_draws": np.sum(counted, axis=0).tolist()}


def _index(plan: PromptPlan) -> int:
    assert plan.index is not None
    return plan.index
