"""Sparse-to-dense in a run: a divergence to the teacher is the loss; it reads neither advantages nor old log-probs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from s2l_ext.methods.base import Method
from s2l_ext.methods.distill.config import CHUNK, DistillConfig
from s2l_ext.methods.distill.rules import check_distill, check_teacher
from s2l_ext.training.batch_fields import DISTILL_BLOCK, SUM_PREFIX
from s2l_ext.training.needed import only_validates

if TYPE_CHECKING:
    from s2l_ext.training.inputs import Inputs
    from s2l_ext.training.step import Step

PREFIX = f"actor/{SUM_PREFIX}/distill/"


class Distill(Method):
    block = "distill"
    config_class = DistillConfig
    may_change = frozenset(
        {"teacher_path", "chunk_size", "nnodes", "n_gpus_per_node", "tensor_model_parallel_size"}
    )  # the teacher is compared by its name; the others change no value

    judges_each_row = True

    config: DistillConfig

    def __init__(self, config: DistillConfig, s2l: Any, cfg: DictConfig) -> None:
        super().__init__(config, s2l, cfg)
        self.is_loss = config.in_actor and not only_validates(cfg)
        self.skips_old_log_probs = self.is_loss

    def check(self) -> list[str]:
        return check_distill(self.config, self.s2l, self.cfg)

    def check_inputs(self, inputs: Inputs) -> list[str]:
        return check_teacher(inputs)

    @property
    def needs_accuracy(self) -> str | None:
        return "s2l.distill.correct_only=True" if self.config.correct_only else None

    def gpus(self) -> dict[str, int]:
        distill = self.config
        return {} if distill.in_actor else {"teacher servers": distill.nnodes * distill.n_gpus_per_node}

    def fingerprint(self) -> dict[str, Any]:
        teacher = Path(self.config.teacher_path).name if self.config.teacher_path else None
        return {"distill.teacher": teacher, **super().fingerprint()}

    @classmethod
    def plan_lines(cls, plan: Mapping[str, Any]) -> list[tuple[str, str]]:
        distill = plan["distill"]
        rows = ", on correct rows only" if distill["correct_only"] else ""
        where = f" to {distill['teacher_path']} (placement {distill['teacher_placement']})"
        teacher = where if distill["teacher_path"] else ""
        return [("loss", f"{distill['loss']}{teacher}{rows}, in place of the policy gradient")]

    def adapt(self) -> None:
        """Leave the block where the workers find it, or set up verl's own distillation for a teacher on servers."""
        if only_validates(self.cfg):
            return
        with open_dict(self.cfg):
            if self.config.in_actor:
                self.cfg.actor_rollout_ref[DISTILL_BLOCK] = OmegaConf.create(asdict(self.config))
            else:
                _teacher_servers(self.cfg, self.config)

    def actor_worker(self) -> type | None:
        from s2l_ext.methods.distill.worker import DistillActorWorker

        return DistillActorWorker if self.is_loss else None

    def advantage(self, step: Step, compute: Callable[[], None]) -> None:
        """The loss reads none; verl's metrics do, so they are written as 0."""
        from s2l_ext.methods.distill.advantages import leave_out_wrong, zero_advantages

        if self.is_loss:
            step.batch = zero_advantages(step.batch)
        else:
            compute()
        if self.config.correct_only:
            step.metrics.update(leave_out_wrong(step))

    def after_update(self, step: Step) -> None:
        if self.is_loss:
            step.metrics.update(finish_token_sums(step.metrics))


def _teacher_servers(config: DictConfig, distill: DistillConfig) -> None:
    sampled = distill.loss == "sampled_k1"
    given = {
        "enabled": True,
        "nnodes": distill.nnodes,
        "n_gpus_per_node": distill.n_gpus_per_node,
        "distillation_loss": {
            "loss_mode": "k1" if sampled else "forward_kl_topk",
            "topk": None if sampled else distill.topk,
            "use_task_rewards": False,
            "use_policy_gradient": sampled,
            "loss_max_clamp": None,
            "log_prob_min_clamp": None,
        },
        "teacher_models": {
            "teacher_model": {
                "model_path": distill.teacher_path,
                "inference": {"tensor_model_parallel_size": distill.tensor_model_parallel_size},
            }
        },
    }
    config.distillation = OmegaConf.merge(config.distillation, given)


def finish_token_sums(metrics: dict[str, Any]) -> dict[str, float]:
    """Take the workers' sums out of ``metrics`` and divide them: means over the tokens that the loss read, in nats.
    Raises RuntimeError: no sums arrived: the workers trained with another loss."""
    sums = {name: float(metrics.pop(name)) for name in list(metrics) if name.startswith(PREFIX)}
    if not sums:
        raise RuntimeError("s2l.distill: the actor workers did not report the loss; they trained with another one")
    tokens, chunk = sums.pop(f"{PREFIX}tokens"), sums.pop(f"{PREFIX}{CHUNK}", None)
    means = {f"s2l/distill/{name.removeprefix(PREFIX)}": value / (tokens or 1.0) for name, value in sums.items()}
    return means | {"s2l/distill/tokens": tokens} | ({"s2l/distill/chunk_size": chunk} if chunk else {})
