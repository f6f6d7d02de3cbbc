"""The step's guidance length: to the workers, and the accuracies it brought back to the controller."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from s2l_ext.errors import StateMismatch
from s2l_ext.methods.guidance.config import GuidanceConfig
from s2l_ext.methods.guidance.length import AdaptiveGuidance, LinearDecay, guided_sessions
from s2l_ext.methods.guidance.rules import build_length
from s2l_ext.training.outcomes import Session, batch_accuracy
from s2l_ext.training.sources import LEARNER


class StepGuidance:
    """How many sessions of a group are guided, and by how many tokens.

    Args:
        config: the ``s2l.guidance`` block.
        group_size: G, sessions per prompt.
        total_steps: T of the decays: the steps that the run really has.
    """

    def __init__(self, config: GuidanceConfig, group_size: int, total_steps: int) -> None:
        self.config = config
        self.group_size = group_size
        self.rule = build_length(config.length, total_steps)
        self.applied: dict[str, float] = {}

    @property
    def adaptive(self) -> AdaptiveGuidance | None:
        """The rule if it learns from accuracies."""
        return self.rule if isinstance(self.rule, AdaptiveGuidance) else None

    def sessions(self, explorer_slots: int) -> int:
        """Guided sessions of every group, after the explorer has taken its own."""
        return min(guided_sessions(self.config.alpha, self.group_size), self.group_size - explorer_slots)

    def length(self, step: int) -> int:
        """Tokens at ``step``, counted from 1."""
        return self.rule.length if isinstance(self.rule, AdaptiveGuidance) else self.rule.at(step - 1)

    def observe(self, length: float, sessions: list[Session]) -> None:
        """Take in a step's outcome; the adaptive rule then has the length of the prompts that are drawn next.

        A step without a row that counts (``signal``) leaves the rule as it is.

        Args:
            length: tokens that the step's rows were planned with; a mean where they were drawn at several steps.
            sessions: of the step.

        Raises:
            DataError: the rule reads accuracies and the reward function gave none.
        """
        self.applied = {"length": float(length), **statistics(sessions)}
        if self.adaptive is None:
            return
        seen = [session for session in sessions if self._counts(session)]
        self.applied["signal_rows"] = float(len(seen))
        if seen:
            accuracy = batch_accuracy(seen, f"s2l.guidance.length.type={self.config.length.type}")
            self.applied["accuracy"] = accuracy
            self.adaptive.observe(accuracy, used_length=length)

    def _counts(self, session: Session) -> bool:
        counts = {"all": session.source == LEARNER, "unguided": session.is_learners_own, "every_source": True}
        return counts[self.config.length.signal]

    def metrics(self) -> dict[str, float]:
        """``s2l/guidance/...`` of the step."""
        after = self.adaptive.metrics() if self.adaptive else {}
        return {f"s2l/guidance/{name}": value for name, value in {**self.applied, **after}.items()}

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self.rule, LinearDecay):
            return {"total_steps": self.rule.total_steps}
        return self.adaptive.state_dict() if self.adaptive else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            StateMismatch: the state is another rule's, or the run was to have another number of steps.
        """
        if self.adaptive:
            self.adaptive.load_state_dict(state)
        elif isinstance(self.rule, LinearDecay) and state.get("total_steps", self.rule.total_steps) != (
            self.rule.total_steps
        ):
            raise StateMismatch(
                f"s2l.guidance.length.type={self.config.length.type} falls over the run's steps: the checkpoint's run "
                f"had {state['total_steps']}, this one has {self.rule.total_steps}. Set trainer.total_training_steps "
                "and trainer.total_epochs back, or start over with trainer.resume_mode=disable."
            )


def resumed_guidance(config: GuidanceConfig, group_size: int, steps: int, saved: dict[str, Any] | None) -> StepGuidance:
    """Guidance of a run that continues ``saved``, or of a fresh one if that is None.

    Args:
        steps: of the run; 0 where the data gives no step, as in a validation of few prompts.

    Raises:
        StateMismatch: as in :meth:`StepGuidance.load_state_dict`.
    """
    guidance = StepGuidance(config, group_size, max(steps, 1))
    if saved is not None:
        guidance.load_state_dict(saved)
    return guidance


def statistics(sessions: list[Session]) -> dict[str, float]:
    """Rows, applied lengths, accuracies and groups with a learning signal, guided and not.

    A group has a signal if its accuracies differ: without one GRPO's advantages are all 0.
    """
    guided = [session for session in sessions if session.prefix_len]
    plain = [session for session in sessions if session.is_learners_own]
    numbers = {"guided_rows": float(len(guided)), "groups_with_signal": share_with_signal(sessions)}
    if guided:
        lengths = [session.prefix_len for session in guided]
        numbers |= {"applied_mean": float(np.mean(lengths)), "applied_min": min(lengths), "applied_max": max(lengths)}
    numbers |= _mean_accuracy("acc_guided", guided) | _mean_accuracy("acc_unguided", plain)
    if plain:
        numbers["unguided_groups_with_signal"] = share_with_signal(plain)
    return {name: float(value) for name, value in numbers.items()}


def _mean_accuracy(name: str, sessions: list[Session]) -> dict[str, float]:
    values = [session.acc for session in sessions if session.acc is not None]
    return {name: float(np.mean(values))} if values else {}


def share_with_signal(sessions: list[Session]) -> float:
    """Share of groups whose sessions differ in accuracy, 0..1."""
    groups: dict[str, set[float | None]] = defaultdict(set)
    for session in sessions:
        groups[session.uid].add(session.acc)
    return float(np.mean([len(values) > 1 for values in groups.values()])) if groups else 0.0
