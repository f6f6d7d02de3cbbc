"""S2L-PO (arXiv 2605.30789, Algorithm 1): how many sessions of every group the small explorer samples.

The one change versus GRPO is who samples: the first ``G_w`` of ``G`` sessions come from a frozen smaller model,
and ``G_w`` falls linearly to zero. State kept: none, the schedule is a function of the step.

:class:`ConstantSchedule` is no part of S2L-PO: it is how a teacher samples every row of sparse-to-dense's warm-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from s2l_ext.errors import ConfigError

ROUND_DIGITS = 9
"""``alpha * G`` is rounded before the ceiling, or floating error adds a slot."""


class Schedule(Protocol):
    """Explorer sessions of every group, step by step; steps count from 1."""

    def slots(self, step: int) -> int: ...

    def table(self, total_steps: int) -> list[int]: ...


def build_schedule(schedule: str, mix_steps: int, group_size: int) -> Schedule:
    """``linear``: hand-over within ``mix_steps``; ``hard_switch``: every session up to step ``mix_steps``, then none;
    ``constant``: every session at every step.

    Raises:
        ConfigError: an argument is below 1.
    """
    if schedule == "constant":
        return ConstantSchedule(group_size)
    return HardSwitch(mix_steps, group_size) if schedule == "hard_switch" else LinearAnnealing(mix_steps, group_size)


@dataclass(frozen=True)
class ConstantSchedule:
    """Another model samples all ``group_size`` sessions, to the end."""

    group_size: int

    def slots(self, step: int) -> int:
        """``group_size``, whatever the step."""
        return self.group_size

    def table(self, total_steps: int) -> list[int]:
        """Slots of steps 1 to ``total_steps``."""
        return [self.group_size] * total_steps


@dataclass(frozen=True)
class HardSwitch:
    """The paper's ablation of annealing (its Fig. 6): the explorer alone, then the learner alone.

    Args:
        mix_steps: the explorer's last step; the learner samples every session from the next step on.
        group_size: G, sessions per prompt.

    Raises:
        ConfigError: an argument is below 1.
    """

    mix_steps: int
    group_size: int

    def __post_init__(self) -> None:
        _check(self.mix_steps, self.group_size)

    def slots(self, step: int) -> int:
        """``group_size`` up to step ``mix_steps``, 0 after it; ``step`` counts from 1."""
        if step < 1:
            raise ValueError(f"step={step}: steps count from 1")
        return self.group_size if step <= self.mix_steps else 0

    def table(self, total_steps: int) -> list[int]:
        """Slots of steps 1 to ``total_steps``."""
        return [self.slots(step) for step in range(1, total_steps + 1)]


@dataclass(frozen=True)
class LinearAnnealing:
    """Linear hand-over from explorer to learner.

    Args:
        mix_steps: T_mix, the step at which the explorer's share reaches 0 (at 1 the explorer has step 1 alone).
        group_size: G, sessions per prompt.

    Raises:
        ConfigError: an argument is below 1.
    """

    mix_steps: int
    group_size: int

    def __post_init__(self) -> None:
        _check(self.mix_steps, self.group_size)

    def alpha(self, step: int) -> float:
        """Share that the formula asks for, in [0, 1]; ``step`` counts from 1."""
        if step < 1:
            raise ValueError(f"step={step}: steps count from 1")
        if step > self.mix_steps:
            return 0.0
        return 1.0 if self.mix_steps == 1 else 1.0 - (step - 1) / (self.mix_steps - 1)

    def slots(self, step: int) -> int:
        """``G_w = ceil(alpha * G)``: sessions of every group that the explorer samples at ``step``."""
        return math.ceil(round(self.alpha(step) * self.group_size, ROUND_DIGITS))

    def table(self, total_steps: int) -> list[int]:
        """Slots of steps 1 to ``total_steps``."""
        return [self.slots(step) for step in range(1, total_steps + 1)]


def _check(mix_steps: int, group_size: int) -> None:
    if mix_steps < 1:
        raise ConfigError(f"mix_steps={mix_steps}: the explorer needs at least one step. Use 1 or more.")
    if group_size < 1:
        raise ConfigError(f"group_size={group_size}: a group has at least one session.")
