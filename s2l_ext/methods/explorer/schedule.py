"""S2L-PO (arXiv 2605.30789, Algorithm 1): how many sessions of every group the small explorer samples.

The one change versus GRPO is who samples: the first ``G_w`` of ``G`` sessions come from a frozen smaller model,
and ``G_w`` falls linearly to zero. State kept: none, the schedule is a function of the step.

:class:`ConstantSchedule` is no part of S2L-PO: it is how a teacher samples every row of sparse-to-dense's warm-up.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from s2l_ext.errors import ConfigError

ROUND_DIGITS = 9
"""``alpha * G`` is rounded before the ceiling, or floating error adds a slot."""


@dataclass(frozen=True)
class Schedule(ABC):
    """Explorer sessions of every group, step by step; steps count from 1.

    Args:
        mix_steps: T_mix, the step at which the explorer's share ends.
        group_size: G, sessions per prompt.

    Raises:
        ConfigError: an argument is below 1.
    """

    mix_steps: int
    group_size: int

    def __post_init__(self) -> None:
        if self.mix_steps < 1:
            raise ConfigError(f"mix_steps={self.mix_steps}: the explorer needs at least one step. Use 1 or more.")
        if self.group_size < 1:
            raise ConfigError(f"group_size={self.group_size}: a group has at least one session.")

    @abstractmethod
    def alpha(self, step: int) -> float:
        """Share of the sessions that the explorer samples, in [0, 1]; ``step`` counts from 1."""

    def slots(self, step: int) -> int:
        """``G_w = ceil(alpha * G)``: sessions of every group that the explorer samples at ``step``."""
        if step < 1:
            raise ValueError(f"step={step}: steps count from 1")
        return math.ceil(round(self.alpha(step) * self.group_size, ROUND_DIGITS))

    def table(self, total_steps: int) -> list[int]:
        """Slots of steps 1 to ``total_steps``."""
        return [self.slots(step) for step in range(1, total_steps + 1)]


class ConstantSchedule(Schedule):
    """The explorer samples every session to the end; ``mix_steps`` is not used."""

    def alpha(self, step: int) -> float:
        return 1.0


class HardSwitch(Schedule):
    """The paper's ablation of annealing (its Fig. 6): the explorer alone up to step ``mix_steps``, then the learner
    alone."""

    def alpha(self, step: int) -> float:
        return 1.0 if step <= self.mix_steps else 0.0


class LinearAnnealing(Schedule):
    """The explorer's share falls linearly to 0 at step ``mix_steps``. With 1 the explorer has step 1 alone."""

    def alpha(self, step: int) -> float:
        if step > self.mix_steps:
            return 0.0
        return 1.0 if self.mix_steps == 1 else 1.0 - (step - 1) / (self.mix_steps - 1)


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {
    "linear": LinearAnnealing,
    "hard_switch": HardSwitch,
    "constant": ConstantSchedule,
}
"""By ``s2l.explorer.schedule``."""
