"""EXPO's curriculum in a run: the prompts of each step, what they showed, and the line that is kept of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from s2l_ext.methods.base import Method
from s2l_ext.methods.curriculum.config import AnyCurriculum, CurriculumConfig
from s2l_ext.methods.curriculum.gaussian import GaussianCurriculum
from s2l_ext.methods.curriculum.pass_rates import HISTOGRAM_BINS, PassRates, bin_of
from s2l_ext.methods.curriculum.rules import check_curriculum, check_last_pass, check_tiers, check_warm_start
from s2l_ext.training.outcomes import pass_rates, require_accuracies
from s2l_ext.training.pending_prompts import PromptPlan

if TYPE_CHECKING:
    from s2l_ext.methods.curriculum.sampler import CurriculumSampler
    from s2l_ext.training.inputs import Inputs
    from s2l_ext.training.pending_prompts import Draw
    from s2l_ext.training.step import Step


class Curriculum(Method):
    """Links verl's prompt ``uid`` to positions in the data set and feeds pass rates back."""

    block = "curriculum"
    config_class = AnyCurriculum
    may_change = frozenset({"warm_start", "on_mismatch"})  # start values, which a resumed run no longer reads

    config: CurriculumConfig
    sampler: CurriculumSampler

    def __init__(self, config: CurriculumConfig, s2l: Any, cfg: DictConfig) -> None:
        super().__init__(config, s2l, cfg)
        self.plans: Mapping[str, PromptPlan] = {}
        self.observed: dict[int, float] = {}
        self.before: dict[str, Any] = {}
        self._draws: list[dict[str, Any]] = []

    def check(self) -> list[str]:
        return check_curriculum(self.config, self.cfg)

    def check_inputs(self, inputs: Inputs) -> list[str]:
        check_tiers(self.config, inputs)
        return check_last_pass(self.config, self.cfg, inputs.rows) if inputs.rows else []

    def check_start(self, resumed: bool) -> None:
        if not resumed:
            check_warm_start(self.config, self.cfg)

    @property
    def needs_accuracy(self) -> str | None:
        return f"s2l.curriculum.type={self.config.type}" if self.config.learns else None

    @classmethod
    def plan_lines(cls, plan: Mapping[str, Any]) -> list[tuple[str, str]]:
        settings = plan["curriculum"]
        named = sorted((name, value) for name, value in settings.items() if name not in ("type", "on_mismatch"))
        shown = [f"{name} {value}" for name, value in named if value is not None]
        return [("prompts", ", ".join([settings["type"], *shown]))]

    def start(self, trainer: Any) -> None:
        """verl's data loader gets the curriculum's sampler, that of the checkpoint where there is one."""
        from s2l_ext.methods.curriculum.sampler import build_sampler, replace_sampler

        saved = trainer.resumed.get(self.block)
        self.sampler = build_sampler(self.config, self.cfg, trainer.train_dataset, saved)
        trainer.train_dataloader = replace_sampler(trainer, self.sampler)

    @property
    def rates(self) -> PassRates | None:
        """None for your own curriculum that keeps no :class:`PassRates`."""
        return getattr(self.sampler.curriculum, "pass_rates", None)

    def draw(self, draw: Draw) -> None:
        """``draw.uids`` name the prompts in the order in which the sampler gave them."""
        indices = self.sampler.take_handed()
        if len(draw.uids) != len(indices):
            raise RuntimeError(f"verl fetched {len(draw.uids)} prompts, the curriculum gave {len(indices)}")
        self._draws.append(self._before_rollouts(indices))
        draw.note("index", indices)

    def observe(self, step: Step) -> None:
        """Update the curriculum with the step's pass rates. Raises DataError: the curriculum reads accuracies and the
        reward function gave none."""
        self.plans, self.observed = step.plans, {}
        self.before, self._draws = _together(self._draws), []
        if self.needs_accuracy and step.outcomes:
            require_accuracies(step.outcomes, self.needs_accuracy)
        by_uid = pass_rates(step.outcomes, self.config.estimate_from)
        by_index: dict[int, list[float]] = defaultdict(list)  # a prompt can be drawn again before it is trained on
        for uid, rate in by_uid.items():
            by_index[_index(self.plans[uid])].append(rate)
        self.observed = {index: math.fsum(rates) / len(rates) for index, rates in by_index.items()}
        if self.observed:
            indices = np.array(list(self.observed), dtype=np.int64)
            self.sampler.curriculum.update(indices, np.array(list(self.observed.values())))

    def metrics(self, step: Step) -> dict[str, float]:
        """After the step's update."""
        own: dict[str, float] = getattr(self.sampler.curriculum, "metrics", dict)()
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

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`start` continues from."""
        return self.sampler.controller_state()


def _together(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """One entry for all draws since the step before: those of an asynchronous run may be several."""
    counted = [draw["bucket_draws"] for draw in draws if draw["bucket_draws"] is not None]
    if not counted:
        return {"bucket_mass": None, "bucket_draws": None}
    return {"bucket_mass": draws[0]["bucket_mass"], "bucket_draws": np.sum(counted, axis=0).tolist()}


def _index(plan: PromptPlan) -> int:
    assert plan.index is not None
    return plan.index
