"""The curriculum in a run: the prompts of each step, what they showed, and the line that is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from s2l_ext.algorithms.curriculum import GaussianCurriculum
from s2l_ext.algorithms.pass_rates import HISTOGRAM_BINS, PassRates, bin_of
from s2l_ext.config.expo_checks import needs_accuracy
from s2l_ext.config.schema import CurriculumConfig
from s2l_ext.errors import DataError
from s2l_ext.trainer.outcomes import Session, pass_rates
from s2l_ext.trainer.sampler import CurriculumSampler

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
        self.position: dict[str, int] = {}
        self.observed: dict[int, float] = {}
        self.before: dict[str, Any] = {}

    @property
    def rates(self) -> PassRates | None:
        """None for a curriculum of one's own that keeps no :class:`PassRates`."""
        return getattr(self.sampler.curriculum, "pass_rates", None)

    def drawn(self, uids: Sequence[str]) -> None:
        """The step's batch is fetched: ``uids`` name its prompts in the order in which the sampler gave them."""
        if len(uids) != len(self.sampler.drawn):
            raise RuntimeError(f"verl fetched {len(uids)} prompts, the curriculum drew {len(self.sampler.drawn)}")
        self.position = dict(zip(uids, self.sampler.drawn, strict=True))
        self.observed = {}
        self.before = self._before_rollouts()

    def observe(self, sessions: list[Session]) -> None:
        """Update the curriculum with the step's pass rates.

        Raises:
            DataError: the curriculum lives on accuracies and the reward function gave none.
        """
        missing = sum(session.acc is None for session in sessions)
        needing = needs_accuracy(None, self.config)
        if missing and needing:
            raise DataError(
                f"{needing[0]} needs the verifier's correctness, but the reward function gave no 'acc' for {missing} "
                f"of {len(sessions)} sessions. Return it beside 'score' for every answer."
            )
        by_uid = pass_rates(sessions, self.config.rows)
        self.observed = {self.position[uid]: rate for uid, rate in by_uid.items()}
        if self.observed:
            indices = np.array(list(self.observed), dtype=np.int64)
            self.sampler.curriculum.update(indices, np.array(list(self.observed.values())))

    def metrics(self) -> dict[str, float]:
        """``s2l/curriculum/...`` after the step's update."""
        own = getattr(self.sampler.curriculum, "metrics", dict)()
        counts = {"drawn_prompts": float(len(self.position)), "updated_prompts": float(len(self.observed))}
        return {f"s2l/curriculum/{name}": value for name, value in {**counts, **own}.items()}

    def line(self) -> dict[str, Any]:
        """What ``curriculum.jsonl`` keeps of the step."""
        rates, drawn = self.rates, list(self.position.values())
        return {
            "type": self.config.type,
            "indices": drawn,
            "pass_rates": [self.observed.get(index) for index in drawn],
            "histogram": None if rates is None else rates.histogram().tolist(),
            **self.before,
            "visits": None if rates is None else rates.visit_counts().tolist(),
        }

    def _before_rollouts(self) -> dict[str, Any]:
        """Draw probability by pass-rate bin, and the step's prompts by bin, as they were when the step was drawn."""
        curriculum, rates = self.sampler.curriculum, self.rates
        if rates is None:
            return {"bucket_mass": None, "bucket_draws": None}
        mass = curriculum.bucket_mass().tolist() if isinstance(curriculum, GaussianCurriculum) else None
        of_drawn = bin_of(rates.rates[self.sampler.drawn], HISTOGRAM_BINS)
        return {"bucket_mass": mass, "bucket_draws": np.bincount(of_drawn, minlength=HISTOGRAM_BINS).tolist()}
