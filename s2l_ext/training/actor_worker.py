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

from s2l_ext.errors import S2LError
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
        self.check_weights = WeightCheck()
        actor_config = loss_fn.keywords["config"]
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
        self.check_weights(loss_fn, model_output, data, dp_group)
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
        return ratio_sums(log_prob, rows["old_log_probs"], rows["advantages"], mask, self.clip_low, self.clip_high)


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


LEAST = 1e-3
"""A weight that is nearer to 1 may change no bit of a gradient."""


class WeightCheck:
    """Checks once that importance weights change the gradient of the loss: verl passes them to every policy loss, and
    some ignore them without a message.

    A micro-batch is conclusive if it has tokens whose weight is not about 1 and whose log-probability the unweighted
    loss moves. The check compares the loss with and without weights on the first such micro-batch.
    """

    def __init__(self) -> None:
        self.done = False

    def __call__(
        self, loss_fn: Callable[..., Any], model_output: Mapping[str, Any], data: TensorDict, dp_group: Any
    ) -> None:
        """Raise S2LError for a loss whose gradient is the same on every such token."""
        if self.done or WEIGHTS not in data or "log_probs" not in model_output:
            return
        rows = data.select(WEIGHTS, "response_mask").to_padded_tensor()
        weighted = ((rows[WEIGHTS] - 1).abs() > LEAST) & rows["response_mask"].bool()
        if not weighted.any():
            return
        without = _gradient(loss_fn, model_output, data.exclude(WEIGHTS), dp_group)
        telling = None if without is None else weighted & (without != 0)
        if without is None or telling is None or not telling.any():
            return
        with_weights = _gradient(loss_fn, model_output, data, dp_group)
        if with_weights is None or torch.equal(with_weights[telling], without[telling]):
            raise S2LError(
                f"the policy loss ignores importance weights: without them its gradient is the same on all "
                f"{int(telling.sum())} tokens whose weight is not 1. Use another "
                "actor_rollout_ref.actor.policy_loss.loss_mode (vanilla), or s2l.explorer.correction=none."
            )
        self.done = True


def _gradient(
    loss_fn: Callable[..., Any], model_output: Mapping[str, Any], data: TensorDict, dp_group: Any
) -> torch.Tensor | None:
    """(B, T) of the loss by the response tokens' log-probabilities, through no model; None for a loss without one."""
    given = {name: value.detach() for name, value in model_output.items() if torch.is_tensor(value)}
    log_probs = given["log_probs"]
    leaf = (log_probs.values() if log_probs.is_nested else log_probs).clone().requires_grad_()
    given["log_probs"] = _like(leaf, log_probs)
    with torch.enable_grad():
        loss, _ = loss_fn(model_output=given, data=data, dp_group=dp_group)
    if not loss.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(loss, leaf)
    return no_padding_2_padding(_like(gradient, log_probs), data)


def _like(values: torch.Tensor, shaped: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor_from_jagged(values, cast(Any, shaped).offsets()) if shaped.is_nested else values
