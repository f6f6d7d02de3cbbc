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
from s2l_ext.training.outcomes import EstimateFrom


@dataclass(frozen=True)
class LengthConfig(ABC):
    """Tokens of a trace that guided rollouts start from."""

    type: str
    """Rule of the length. ``adaptive``: the paper's, from accuracy. ``additive``: a fixed change from accuracy.
    ``constant``, ``linear``, ``concave``, ``stepwise``: from the step alone."""
    initial: int = limited(3072, at_least=0)
    """Length of the first step, in tokens."""
    max_length: int = limited(3072, at_least=1)
    """Longest length, in tokens."""

    @property
    def follows(self) -> EstimateFrom | None:
        """Whose accuracy moves the length (``estimate_from``); None: the step alone does."""
        return None

    @abstractmethod
    def build(self, total_steps: int) -> Length:
        """The length that the block describes. Raises ConfigError for an argument out of range. ``total_steps``: T of
        the decays."""


@dataclass(frozen=True)
class ControlledLength(LengthConfig):
    """A length that follows the accuracy of the last steps."""

    min_length: int = limited(1, at_least=0)
    """Shortest length, in tokens."""
    window: int = limited(2, at_least=1)
    """Earlier steps whose mean accuracy the new accuracy is compared with. With ``additive`` it includes the newest
    accuracy and must be at least 2."""
    estimate_from: EstimateFrom = "learner"
    """Rows whose accuracy counts. ``learner_unguided``: the learner's rows without guidance. ``learner``: all of
    the learner's. ``all``: every row."""

    @property
    def follows(self) -> EstimateFrom:
        return self.estimate_from


@dataclass(frozen=True)
class AdaptiveLength(ControlledLength):
    """The paper's rule: l <- clamp(l * mean of earlier accuracies / this accuracy)."""

    type: Literal["adaptive"] = "adaptive"
    averaging: Averaging = "sliding"
    """Which earlier steps are averaged: a sliding window or blocks."""
    max_change: float | None = limited(None, above=1)
    """Largest factor of one change, and its inverse the smallest; null does not limit it."""

    def build(self, total_steps: int) -> AdaptiveGuidance:
        bounds = (self.initial, self.max_length, self.min_length, self.window)
        return AdaptiveGuidance(*bounds, averaging=self.averaging, max_change=self.max_change)


@dataclass(frozen=True)
class AdditiveLength(ControlledLength):
    """``delta`` tokens shorter when accuracy is above the mean of the last ``window`` steps, else longer."""

    type: Literal["additive"] = "additive"
    delta: int = limited(256, at_least=1)
    """Tokens of one change."""

    def build(self, total_steps: int) -> AdditiveGuidance:
        return AdditiveGuidance(self.initial, self.max_length, self.min_length, self.window, delta=self.delta)


@dataclass(frozen=True)
class ConstantLength(LengthConfig):
    """Always ``initial`` tokens."""

    type: Literal["constant"] = "constant"

    def build(self, total_steps: int) -> Constant:
        return Constant(self.initial)


@dataclass(frozen=True)
class LinearLength(LengthConfig):
    """From ``initial`` to 0 over the run, in a straight line."""

    type: Literal["linear"] = "linear"

    def build(self, total_steps: int) -> LinearDecay:
        return LinearDecay(self.initial, total_steps)


@dataclass(frozen=True)
class ConcaveLength(LengthConfig):
    """From ``initial`` to 0 over the run, fast at first."""

    type: Literal["concave"] = "concave"
    power: float = limited(2.0, above=1)
    """Exponent of the curve; a larger one falls sooner."""

    def build(self, total_steps: int) -> ConcaveDecay:
        return ConcaveDecay(self.initial, total_steps, self.power)


@dataclass(frozen=True)
class StepwiseLength(LengthConfig):
    """Multiplied by ``gamma`` at fixed intervals."""

    type: Literal["stepwise"] = "stepwise"
    gamma: float = limited(0.5, above=0, below=1)
    """Factor of one reduction."""
    every: int = limited(100, at_least=1)
    """Steps between reductions."""

    def build(self, total_steps: int) -> StepwiseDecay:
        return StepwiseDecay(self.initial, self.gamma, self.every)


AnyLength = AdaptiveLength | AdditiveLength | ConstantLength | LinearLength | ConcaveLength | StepwiseLength
"""Distinguished by ``type``; the first is the default."""


@dataclass(frozen=True)
class GuidanceConfig:
    """G2RPO-A: the first sessions of a group continue a reasoning trace."""

    alpha: float = limited(0.25, at_least=0, at_most=1)
    """Guided share of a group: the first ``round(alpha * G)`` sessions."""
    trace: str = "extra_info.trace"
    """Dotted name of the column with the traces."""
    teacher_rollouts: str | None = None
    """File of another model's graded answers (fields ``prompt_id``, ``response``, ``acc``). Its right answers
    replace the column."""
    length: AnyLength = field(default_factory=AdaptiveLength)
    """How many tokens of the trace a rollout starts from."""
    loss_on_guidance: bool = False
    """Train on the tokens of the trace too."""
    min_continuation: int = limited(512, at_least=1)
    """Response tokens that the model always writes itself."""
    stop_before_answer: bool = True
    """Cut the trace before the first place that gives the answer away."""
    missing_trace: Literal["error", "skip_guidance"] = "error"
    """Rows without a trace. ``error``: the run is refused. ``skip_guidance``: they are not guided."""
