"""Does the loss multiply importance weights in? Asked of the loss itself, by what its gradient does without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from tensordict import TensorDict
from verl.workers.utils.padding import no_padding_2_padding

from s2l_ext.errors import S2LError

WEIGHTS = "rollout_is_weights"
LEAST = 1e-3
"""A weight that is nearer to 1 may change no bit of a gradient."""


class WeightCheck:
    """Compares a loss with and without the weights, on micro-batches until one can tell; then it is silent.

    One can tell that has tokens whose weight is not about 1 and whose log-probability the unweighted loss moves.
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
