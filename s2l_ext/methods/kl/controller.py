"""EXPO's KL coefficient in a run: chosen for each step, sent to the workers, and compared with what they used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from s2l_ext.methods.base import Method
from s2l_ext.methods.kl.config import AnyKL, KLConfig
from s2l_ext.methods.kl.rules import check_kl, rows_of_a_step
from s2l_ext.training.batch_fields import KL_BETA_FIELD, KL_BETA_MAX, KL_BETA_MIN
from s2l_ext.training.outcomes import batch_accuracy

if TYPE_CHECKING:
    from s2l_ext.training.step import Step

KL_METRIC = "actor/kl_loss"


class KL(Method):
    """One coefficient for every mini-batch, epoch and worker of a step."""

    block = "kl"
    config_class = AnyKL

    config: KLConfig

    def __init__(self, config: KLConfig, s2l: Any, cfg: DictConfig) -> None:
        super().__init__(config, s2l, cfg)
        self.applied: dict[str, float] = {}

    def check(self) -> list[str]:
        return check_kl(self.config, self.cfg)

    @property
    def needs_accuracy(self) -> str | None:
        return "s2l.kl.type=accuracy" if self.config.type == "accuracy" else None

    def plan(self, steps: int | None) -> dict[str, Any]:
        return {"kl_in_loss": self.config.in_words(rows_of_a_step(self.cfg))}

    @classmethod
    def plan_lines(cls, plan: Mapping[str, Any]) -> list[tuple[str, str]]:
        return []  # the line of the advantage shows every run's KL, verl's too

    def adapt(self) -> None:
        """What verl prints is what the coefficient starts from."""
        with open_dict(self.cfg):
            self.cfg.actor_rollout_ref.actor.kl_loss_coef = self.config.beta

    def actor_worker(self) -> type:
        from s2l_ext.training.actor_worker import S2LActorWorker

        return S2LActorWorker

    def start(self, trainer: Any) -> None:
        self.controller = self.config.build(rows_of_a_step(self.cfg))

    def before_update(self, step: Step) -> None:
        """Choose the coefficient and put it into what the workers receive. Raises DataError: the coefficient follows
        accuracy and the reward function gave none."""
        known = self.needs_accuracy or all(session.acc is not None for session in step.outcomes)
        accuracy = batch_accuracy(step.outcomes, "s2l.kl.type=accuracy") if known else None
        beta = self.controller.coefficient(accuracy)
        step.batch.extra_info[KL_BETA_FIELD] = beta
        self.applied = {"beta": beta, **({} if accuracy is None else {"accuracy": accuracy})}

    def after_update(self, step: Step) -> None:
        """Compare what the workers' loss used with what was sent, and let the controller see the KL. Raises
        RuntimeError: a worker used another coefficient, or none reported one."""
        beta = self.applied["beta"]
        low, high = (step.metrics.pop(f"actor/{name}", None) for name in (KL_BETA_MIN, KL_BETA_MAX))
        if low is None or high is None:
            raise RuntimeError(f"the step's KL coefficient {beta:g} did not reach the loss of the actor workers")
        if not low == high == beta:
            raise RuntimeError(f"the actor workers used KL coefficients {low:g} to {high:g} instead of {beta:g}")
        self.applied |= {"beta_reported_low": float(low), "beta_reported_high": float(high)}
        kl = float(step.metrics[KL_METRIC])
        self.applied |= {"kl": kl, **self.controller.metrics()}
        self.controller.observe(kl)

    def metrics(self, step: Step) -> dict[str, float]:
        return {f"s2l/kl/{name}": value for name, value in self.applied.items()}

    def state_dict(self) -> dict[str, Any]:
        return self.controller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state)
