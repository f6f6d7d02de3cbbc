"""Advantages of one size: divide them by a moving average of their mean absolute value.

The one change versus GRPO: the advantage. A step in which few groups have a signal then moves the policy as far as one
in which most have. State kept: the moving average, one number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict

from s2l_ext.config.limits import limited
from s2l_ext.errors import ConfigError
from s2l_ext.methods.base import Method
from s2l_ext.training.queue import put, read
from s2l_ext.training.step import Step


@dataclass(frozen=True)
class AdvantageScaleConfig:
    """``ema``: weight of the past. ``floor``: the smallest number that advantages are divided by."""

    ema: float = limited(0.9, at_least=0, below=1)
    floor: float = limited(0.05, above=0)


class AdvantageScale(Method):
    block = "advantage_scale"
    config_class = AdvantageScaleConfig

    config: AdvantageScaleConfig

    def __init__(self, config: AdvantageScaleConfig, s2l: Any, cfg: Any) -> None:
        super().__init__(config, s2l, cfg)
        self.size: float | None = None

    def check(self) -> list[str]:
        if self.s2l.distill is not None:
            raise ConfigError("s2l.advantage_scale with s2l.distill: its loss reads no advantages. Turn one off.")
        return []

    def advantage(self, step: Step, compute: Callable[[], None]) -> None:
        compute()
        rows = read(step.batch, ["advantages", "response_mask"])
        advantages, mask = rows["advantages"], rows["response_mask"].values().float()
        found = float((advantages.values().abs() * mask).sum() / mask.sum().clamp(min=1))
        self.size = found if self.size is None else self.config.ema * self.size + (1 - self.config.ema) * found
        scaled = advantages.values() / max(self.size, self.config.floor)
        nested = torch.nested.nested_tensor_from_jagged(scaled, advantages.offsets())
        step.batch = put(step.batch, TensorDict({"advantages": nested}, batch_size=len(step.batch)))

    def metrics(self, step: Step) -> dict[str, float]:
        return {"s2l/advantage_scale/size": self.size or 0.0}

    def state_dict(self) -> dict[str, Any]:
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.size = state["size"]
