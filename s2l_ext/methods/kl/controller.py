"""The step's KL coefficient: from the controller to the workers, and back to be compared."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from transfer_queue import KVBatchMeta

from s2l_ext.methods.kl.config import KLConfig
from s2l_ext.methods.kl.rules import build_kl
from s2l_ext.training.actor_worker import KL_BETA_MAX, KL_BETA_MIN
from s2l_ext.training.batch_fields import KL_BETA_FIELD
from s2l_ext.training.outcomes import Session, batch_accuracy

KL_METRIC = "actor/kl_loss"


class StepKL:
    """Applies one coefficient to every mini-batch, epoch and worker of a step.

    Args:
        config: the ``s2l.kl`` block.
        cfg: verl's whole configuration.
    """

    def __init__(self, config: KLConfig, cfg: DictConfig) -> None:
        self.controller = build_kl(config, cfg)
        self.reads_accuracy = config.type == "accuracy"
        self.applied: dict[str, float] = {}

    def send(self, batch: KVBatchMeta, sessions: list[Session]) -> None:
        """Choose the coefficient before the update and put it into what the workers receive.

        Raises:
            DataError: the coefficient follows accuracy and the reward function gave none.
        """
        known = self.reads_accuracy or all(session.acc is not None for session in sessions)
        accuracy = batch_accuracy(sessions, "s2l.kl.type=accuracy") if known else None
        beta = self.controller.coefficient(accuracy)
        batch.extra_info[KL_BETA_FIELD] = beta
        self.applied = {"beta": beta, **({} if accuracy is None else {"accuracy": accuracy})}

    def receive(self, metrics: dict[str, Any]) -> None:
        """Compare what the workers' loss used with what was sent, and let the controller see the KL.

        Raises:
            RuntimeError: a worker used another coefficient, or none reported one.
        """
        beta = self.applied["beta"]
        low, high = (metrics.pop(f"actor/{name}", None) for name in (KL_BETA_MIN, KL_BETA_MAX))
        if low is None or high is None:
            raise RuntimeError(f"the step's KL coefficient {beta:g} did not reach the loss of the actor workers")
        if not low == high == beta:
            raise RuntimeError(f"the actor workers used KL coefficients {low:g} to {high:g} instead of {beta:g}")
        self.applied |= {"beta_reported_low": float(low), "beta_reported_high": float(high)}
        kl = float(metrics[KL_METRIC])
        self.applied |= {"kl": kl, **self.controller.metrics()}
        self.controller.observe(kl)

    def metrics(self) -> dict[str, float]:
        """What the step applied: ``s2l/kl/...``; empty before the first update."""
        return {f"s2l/kl/{name}": value for name, value in self.applied.items()}

    def state_dict(self) -> dict[str, Any]:
        return self.controller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state)
