"""G2RPO-A's guidance length (arXiv 2508.13023): how many tokens of a reasoning trace the guided rollouts start from.

The one change versus GRPO: the first ``round(alpha * G)`` rollouts of a group continue from the first ``length``
tokens of a trace. State kept by :class:`AdaptiveGuidance` and :class:`AdditiveGuidance`: the length and the last
accuracies. The direction of the rule is the prose's and the authors' code's, not that of the printed Eq. 5.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from s2l_ext.errors import ConfigError, StateMismatch

Averaging = Literal["sliding", "disjoint_windows"]
CYCLE = 3
"""``disjoint_windows``, the authors' code: two accuracies are averaged, the third is compared with them, and again."""


def guided_sessions(alpha: float, group_size: int) -> int:
    """Guided rollouts of a group: ``round(alpha * G)``, at least 1 if ``alpha`` > 0. Raises ConfigError: ``alpha``
    outside [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha={alpha}: the guided share of a group lies in [0, 1].")
    return max(math.floor(alpha * group_size + 0.5), 1 if alpha > 0 else 0)


class Length(ABC):
    """Number of tokens that guided rollouts start from. A length that depends on the step alone keeps no state."""

    @property
    def longest(self) -> int:
        """Upper bound over all steps, tokens; a length without state begins with it."""
        return self.at(1)

    @abstractmethod
    def at(self, step: int) -> int:
        """Tokens of the prompts that are drawn at ``step``, counted from 1."""

    def observe(self, accuracy: float, used_length: float | None = None) -> None:  # noqa: B027 - nothing to learn
        """Update from a step's accuracy; see :meth:`AdaptiveGuidance.observe`."""

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - nothing is kept
        """Continue from :meth:`state_dict`; StateMismatch if the state is another length's."""


class AdaptiveGuidance(Length):
    """``length <- clamp(used * mean(previous accuracies) / accuracy)``: falling accuracy gives longer guidance.

    ``used`` is the length of the rows that gave the accuracy. In asynchronous modes it is older than the newest length.
    Multiplying the newest one would apply a change again before its effect shows, and the length would swing from bound
    to bound. The length stays when either accuracy is 0, and at the first step, which has no previous one. So a run
    whose accuracy stays 0 never changes its length.

    Args:
        initial: length of the first step, tokens.
        max_length: longest length, tokens.
        min_length: shortest length, tokens.
        window: how many previous accuracies are averaged (Eq. 5's T).
        averaging: ``sliding`` slides the window; windows of ``disjoint_windows``, the authors' code, do not overlap.
        max_change: largest factor of one change, > 1; None for no limit.

    Raises:
        ConfigError: an argument out of range.
    """

    def __init__(
        self,
        initial: int = 3072,
        max_length: int = 3072,
        min_length: int = 1,
        window: int = 2,
        averaging: Averaging = "sliding",
        max_change: float | None = None,
    ) -> None:
        _check_lengths(initial, max_length, min_length)
        if window < 1:
            raise ConfigError(f"window={window}: the rule compares with at least one previous accuracy.")
        if averaging == "disjoint_windows" and window != CYCLE - 1:
            raise ConfigError(f"window={window}: averaging=disjoint_windows always averages {CYCLE - 1} accuracies.")
        if max_change is not None and not max_change > 1:
            raise ConfigError(f"max_change={max_change}: the largest factor of a change must be above 1.")
        self.length = initial
        self.max_length, self.min_length = max_length, min_length
        self.averaging, self.max_change = averaging, max_change
        self.previous: deque[float] = deque(maxlen=window)

    @property
    def longest(self) -> int:
        return self.max_length

    def at(self, step: int) -> int:
        return self.length

    def observe(self, accuracy: float, used_length: float | None = None) -> None:
        """Update from a step's accuracy; sets the length of the prompts that are drawn next.

        Args:
            accuracy: share of correct rollouts of the step.
            used_length: tokens that its rows were drawn with, a mean where they differ; None is ``length``.

        Raises:
            ValueError: an accuracy outside [0, 1], or a negative length.
        """
        used = self._checked(accuracy, used_length)
        full = self.averaging == "sliding" or len(self.previous) == CYCLE - 1
        if self.previous and full:
            self.length = self._next(sum(self.previous) / len(self.previous), accuracy, used)
            if self.averaging == "disjoint_windows":
                self.previous.clear()
                return
        self.previous.append(accuracy)

    def _checked(self, accuracy: float, used_length: float | None) -> float:
        if not 0.0 <= accuracy <= 1.0:
            raise ValueError(f"accuracy={accuracy}: the share of correct rollouts lies in [0, 1]")
        used = self.length if used_length is None else used_length
        if not used >= 0:
            raise ValueError(f"used_length={used_length}: rows start from 0 tokens of guidance or more")
        return used

    def _next(self, average: float, accuracy: float, used: float) -> int:
        if not (average > 0 and accuracy > 0):
            return self.length
        wanted = used if accuracy == average else used * average / accuracy
        if self.max_change is not None:
            wanted = min(max(wanted, self.length / self.max_change), self.length * self.max_change)
        return self._bounded(wanted)

    def _bounded(self, wanted: float) -> int:
        wanted = min(max(wanted, self.min_length), self.max_length)
        return int(wanted) if self.averaging == "disjoint_windows" else _rounded(wanted)

    def metrics(self) -> dict[str, float]:
        """The length of the next step, tokens."""
        return {"next_length": float(self.length)}

    def state_dict(self) -> dict[str, Any]:
        return {"length": self.length, "previous": list(self.previous)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; StateMismatch if the state is another controller's."""
        if set(state) != {"length", "previous"}:
            raise StateMismatch(f"the guidance state has the keys {sorted(state)}, wanted length, previous")
        self.length = int(state["length"])
        self.previous = deque((float(value) for value in state["previous"]), maxlen=self.previous.maxlen)


class AdditiveGuidance(AdaptiveGuidance):
    """``delta`` tokens fewer when accuracy is above the average of the last ``window``, its own included, else more.

    A third party's description of the method, for comparison. A constant accuracy, 0 too, makes the length grow.

    Args:
        window: how many accuracies are averaged, the newest one included; at least 2.
        delta: change of one step, tokens.
    """

    def __init__(
        self, initial: int = 3072, max_length: int = 3072, min_length: int = 1, window: int = 2, delta: int = 256
    ) -> None:
        super().__init__(initial, max_length, min_length, window)
        if window < 2:
            raise ConfigError(f"window={window}: an accuracy alone is never above its own average. Use 2 or more.")
        if delta < 1:
            raise ConfigError(f"delta={delta}: a change is at least 1 token.")
        self.delta = delta

    def observe(self, accuracy: float, used_length: float | None = None) -> None:
        """As in :meth:`AdaptiveGuidance.observe`; acts from the first step on."""
        used = self._checked(accuracy, used_length)
        self.previous.append(accuracy)
        above = accuracy * len(self.previous) > math.fsum(self.previous)
        self.length = self._bounded(used - self.delta if above else used + self.delta)


@dataclass(frozen=True)
class Constant(Length):
    """The same length at every step."""

    length: int

    def __post_init__(self) -> None:
        _check_initial(self.length)

    def at(self, step: int) -> int:
        return self.length


@dataclass(frozen=True)
class LinearDecay(Length):
    """``initial * (1 - t / T)`` with ``t = step - 1``: ``initial`` at the first step, 0 after step ``T``."""

    initial: int
    total_steps: int

    def __post_init__(self) -> None:
        _check_initial(self.initial)
        if self.total_steps < 1:
            raise ConfigError(f"total_steps={self.total_steps}: a decay needs at least 1 step.")

    def at(self, step: int) -> int:
        return _rounded(self.initial * self._left(step))

    def _left(self, step: int) -> float:
        return max(1.0 - _before(step) / self.total_steps, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"total_steps": self.total_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("total_steps", self.total_steps) != self.total_steps:
            raise StateMismatch(
                f"a linear or concave guidance length falls over the run's steps: the checkpoint's run had "
                f"{state['total_steps']}, this one has {self.total_steps}. Set trainer.total_training_steps and "
                "trainer.total_epochs back, or start over with trainer.resume_mode=disable."
            )


@dataclass(frozen=True)
class ConcaveDecay(LinearDecay):
    """``initial * (1 - t / T) ** power`` with ``power`` > 1 and ``t = step - 1``."""

    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.power > 1:
            raise ConfigError(f"power={self.power}: the concave decay has an exponent above 1; 1 is LinearDecay.")

    def at(self, step: int) -> int:
        return _rounded(self.initial * self._left(step) ** self.power)


@dataclass(frozen=True)
class StepwiseDecay(Length):
    """``initial * gamma ** floor(t / every)`` with ``t = step - 1``."""

    initial: int
    gamma: float
    every: int

    def __post_init__(self) -> None:
        _check_initial(self.initial)
        if not 0 < self.gamma < 1:
            raise ConfigError(f"gamma={self.gamma}: the factor of a stage lies between 0 and 1.")
        if self.every < 1:
            raise ConfigError(f"every={self.every}: a stage has at least 1 step.")

    def at(self, step: int) -> int:
        return _rounded(self.initial * self.gamma ** (_before(step) // self.every))


def _before(step: int) -> int:
    """Steps before ``step``."""
    if step < 1:
        raise ValueError(f"step={step}: steps count from 1")
    return step - 1


def _rounded(tokens: float) -> int:
    return math.floor(tokens + 0.5)


def _check_initial(initial: int) -> None:
    if initial < 0:
        raise ConfigError(f"initial={initial}: a guidance length is 0 tokens or more.")


def _check_lengths(initial: int, max_length: int, min_length: int) -> None:
    if not 0 <= min_length <= initial <= max_length:
        raise ConfigError(
            f"initial={initial}, min_length={min_length}, max_length={max_length}: lengths must satisfy "
            "0 <= min_length <= initial <= max_length."
        )
