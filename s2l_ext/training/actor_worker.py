"""verl's actor worker with a loss that takes the step's KL coefficient and reports by row source."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import no_padding_2_padding

from s2l_ext.errors import ConfigError
from s2l_ext.training.batch_fields import (
    IS_CAP_FIELD,
    KL_BETA_FIELD,
    KL_BETA_MAX,
    KL_BETA_MIN,
    SOURCE_FIELD,
    SUM_PREFIX,
    WEIGHTS,
)
from s2l_ext.training.checkpoint_files import saved_before
from s2l_ext.training.registration import require_registered
from s2l_ext.training.source_sums import source_sums, truncated_weights


def ratio_sums(
    log_prob_B_T: torch.Tensor,
    old_log_prob_B_T: torch.Tensor,
    advantage_B_T: torch.Tensor,
    mask_B_T: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> dict[str, torch.Tensor]:
    """(B,) summed over valid tokens: ratio pi/pi_old, and tokens whose clipped surrogate is active."""
    ratio = torch.exp(torch.clamp(log_prob_B_T - old_log_prob_B_T, -20.0, 20.0))
    clipped = torch.clamp(ratio, 1 - clip_low, 1 + clip_high)
    active = (-advantage_B_T * clipped > -advantage_B_T * ratio).float()
    return {"ratio": (ratio * mask_B_T).sum(dim=-1), "clipped": (active * mask_B_T).sum(dim=-1)}


class StepLoss:
    """Wraps verl's loss, a partial with its ``config``. Overrides the KL coefficient when the batch carries one, makes
    importance weights when it carries a cap, and adds sums by source. Otherwise it calls verl unchanged.

    Instructions come with the batch, not from worker state: a worker that was started again needs no history.
    """

    def __init__(self, loss_fn: partial) -> None:
        self.loss_fn = loss_fn
        actor_config = loss_fn.keywords["config"]
        self.clips = actor_config.policy_loss.get("loss_mode", "vanilla") == "vanilla"
        self.clip_low = _first(actor_config.clip_ratio_low, actor_config.clip_ratio)
        self.clip_high = _first(actor_config.clip_ratio_high, actor_config.clip_ratio)

    def __call__(self, model_output: Any = None, data: Any = None, dp_group: Any = None, **rest: Any) -> Any:
        if model_output is None:  # verl's distillation calls it this way for logits
            return self.loss_fn(data=data, **rest)
        beta = tu.get_non_tensor_data(data, KL_BETA_FIELD, default=None)
        loss_fn = self.loss_fn if beta is None else self._with_coefficient(beta)
        cap = tu.get_non_tensor_data(data, IS_CAP_FIELD, default=None)
        if cap is not None:
            data = data.clone(recurse=False).set(WEIGHTS, truncated_weights(data, cap))
        loss, metrics = loss_fn(model_output=model_output, data=data, dp_group=dp_group)
        if beta is not None:
            metrics |= dict.fromkeys((KL_BETA_MIN, KL_BETA_MAX), metrics["kl_coef"])
        if SOURCE_FIELD in data and "log_probs" in model_output:
            with torch.no_grad():
                metrics.update(as_metrics(source_sums(data, cap, self._of_update(model_output, data))))
        return loss, metrics

    def _with_coefficient(self, beta: float) -> Callable[..., Any]:
        """The loss with another ``kl_loss_coef``; a copy, because verl's configuration is frozen."""
        config = copy.copy(self.loss_fn.keywords["config"])
        object.__setattr__(config, "kl_loss_coef", beta)
        return partial(self.loss_fn, config=config)

    def _of_update(self, model_output: Any, data: TensorDict) -> dict[str, torch.Tensor]:
        """(B,) of each row, with the log-probabilities that the loss itself read."""
        rows = data.select("old_log_probs", "advantages", "response_mask").to_padded_tensor()
        log_prob, mask = no_padding_2_padding(model_output["log_probs"], data), rows["response_mask"].float()
        sums = ratio_sums(log_prob, rows["old_log_probs"], rows["advantages"], mask, self.clip_low, self.clip_high)
        return sums if self.clips else {"ratio": sums["ratio"]}  # other losses clip elsewhere, or not at all


def as_metrics(sums: Mapping[str, float]) -> dict[str, Metric]:
    """What the loss reports of :func:`source_sums`; verl reduces them over micro-batches, workers and mini-batches."""
    how = {True: AggregationType.MAX, False: AggregationType.SUM}
    return {f"{SUM_PREFIX}/{name}": Metric(how[name.endswith("_max")], value) for name, value in sums.items()}


def _first(value: float | None, fallback: float) -> float:
    return fallback if value is None else value


class S2LActorWorker(ActorRolloutRefWorker):
    """verl's actor, rollout and reference worker, with a wrapped loss, and one count of checkpoints over all starts."""

    loaded: Path | None = None

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[attr-defined]
    def init_model(self) -> None:
        require_registered("actor worker")
        super().init_model()
        # verl has built its loss and given it to the actor: wrap it and give it again
        self.loss_fn = StepLoss(self.loss_fn)
        cast(Any, self.actor).set_loss_fn(self.loss_fn)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[attr-defined]
    def load_checkpoint(self, local_path: str, *where: Any, **more: Any) -> None:
        super().load_checkpoint(local_path, *where, **more)
        self.loaded = Path(local_path)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[attr-defined]
    def save_checkpoint(self, local_path: str, *where: Any, **more: Any) -> None:
        if self.loaded is not None:
            # verl counts max_actor_ckpt_to_keep from each start, so every restart would leave that many behind
            manager = getattr(cast(Any, self.actor).engine, "checkpoint_manager", None)  # Megatron's has another name
            if manager is not None:
                manager.previous_saved_paths = saved_before(self.loaded, Path(local_path))
            self.loaded = None
        super().save_checkpoint(local_path, *where, **more)


def extending_all(workers: list[type]) -> type:
    """The actor worker that extends every other. Raises ConfigError: two methods bring workers of which neither extends
    the other."""
    for worker in workers:
        if all(issubclass(worker, other) for other in workers):
            return worker
    names = ", ".join(sorted({worker.__name__ for worker in workers}))
    raise ConfigError(f"{names}: each of these actor workers is a method's, and none extends the others. Turn one off.")
