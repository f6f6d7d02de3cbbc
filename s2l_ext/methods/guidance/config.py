"""The block ``s2l.guidance``; its ``length`` has one class for each ``type``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from s2l_ext.config.limits import limited
from s2l_ext.methods.guidance.length import (
    AdaptiveGuidance,
    AdditiveGuidance,
    Averaging,
    ConcaveDecay,
    Constant,
    Length,
    LinearDecay,
    StepwiseDecay,
)

EstimateFrom = Literal["learner_unguided", "learner", "all"]


@dataclass(frozen=True)
class LengthConfig(ABC):
    """Tokens of a trace that guided rollouts start from, at most ``max_length`` with every type."""

    type: str
    initial: int = limited(3072, at_least=0)
    max_length: int = limited(3072, at_least=1)

    @property
    def follows(self) -> EstimateFrom | None:
        """Whose accuracy moves the length (``estimate_from``); None: the step alone does."""
        return None

    @abstractmethod
    def build(self, total_steps: int) -> Length:
        """The length that the block describes. Raises ConfigError for an argument out of range.

        Args:
            total_steps: T of the decays.
        """


@dataclass(frozen=True)
class ControlledLength(LengthConfig):
    """``estimate_from``: the learner's rows without guidance, all of the learner's, or all."""

    min_length: int = limited(1, at_least=0)
    window: int = limited(2, at_least=1)
    estimate_from: EstimateFrom = "learner"

    @property
    def follows(self) -> EstimateFrom:
        return self.estimate_from


@dataclass(frozen=True)
class AdaptiveLength(ControlledLength):
    type: Literal["adaptive"] = "adaptive"
    averaging: Averaging = "sliding"
    max_change: float | None = limited(None, above=1)

    def build(self, total_steps: int) -> AdaptiveGuidance:
        bounds = (self.initial, self.max_length, self.min_length, self.window)
        return AdaptiveGuidance(*bounds, averaging=self.averaging, max_change=self.max_change)


@dataclass(frozen=True)
class AdditiveLength(ControlledLength):
    type: Literal["additive"] = "additive"
    delta: int = limited(256, at_least=1)

    def build(self, total_steps: int) -> AdditiveGuidance:
        return AdditiveGuidance(self.initial, self.max_length, self.min_length, self.window, delta=self.delta)


@dataclass(frozen=True)
class ConstantLength(LengthConfig):
    type: Literal["constant"] = "constant"

    def build(self, total_steps: int) -> Constant:
        return Constant(self.initial)


@dataclass(frozen=True)
class LinearLength(LengthConfig):
    type: Literal["linear"] = "linear"

    def build(self, total_steps: int) -> LinearDecay:
        return LinearDecay(self.initial, total_steps)


@dataclass(frozen=True)
class ConcaveLength(LengthConfig):
    type: Literal["concave"] = "concave"
    power: float = limited(2.0, above=1)

    def build(self, total_steps: int) -> ConcaveDecay:
        return ConcaveDecay(self.initial, total_steps, self.power)


@dataclass(frozen=True)
class StepwiseLength(LengthConfig):
    type: Literal["stepwise"] = "stepwise"
    gamma: float = limited(0.5, above=0, below=1)
    every: int = limited(100, at_least=1)

    def build(self, total_steps: int) -> StepwiseDecay:
        return StepwiseDecay(self.initial, self.gamma, self.every)


AnyLength = AdaptiveLength | AdditiveLength | ConstantLength | LinearLength | ConcaveLength | StepwiseLength
"""Told apart by ``type``; the first is the default."""


@dataclass(frozen=True)
class GuidanceConfig:
    """G2RPO-A: the first ``round(alpha * G)`` sessions of a group continue a reasoning trace.

    ``trace`` is the dotted name of the traces' column; ``teacher_rollouts`` a file of another model's graded answers
    (fields ``prompt_id``, ``response``, ``acc``), whose right ones take the column's place. ``min_continuation``:
    response tokens that the model always writes itself. ``missing_trace``: what happens to rows without one.
    """

    alpha: float = limited(0.25, at_least=0, at_most=1)
    trace: str = "extra_info.trace"
    teacher_rollouts: str | None = None
    length: AnyLength = field(default_factory=AdaptiveLength)
    loss_on_guidance: bool = False
    min_continuation: int = limited(512, at_least=1)
    stop_before_answer: bool = True
    missing_trace: Literal["error", "skip_guidance"] = "error"
