"""The block ``s2l.guidance``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from s2l_ext.config.limits import limited


@dataclass(frozen=True)
class GuidanceLengthConfig:
    """Tokens of a trace that guided rollouts start from, at most ``max_length`` with every type.

    ``min_length``, ``window`` and ``estimate_from`` belong to ``adaptive`` and ``additive``. ``estimate_from`` says
    whose accuracy moves the length: the learner's rows without guidance, all of the learner's, or all.
    """

    type: Literal["adaptive", "additive", "constant", "linear", "concave", "stepwise"] = "adaptive"
    initial: int = limited(3072, at_least=0)
    max_length: int = limited(3072, at_least=1)
    min_length: int = limited(1, at_least=0)
    window: int = limited(2, at_least=1)
    averaging: Literal["sliding", "disjoint_windows"] = "sliding"
    max_change: float | None = limited(None, above=1)
    estimate_from: Literal["learner_unguided", "learner", "all"] = "learner"
    delta: int = limited(256, at_least=1)
    power: float = limited(2.0, above=1)
    gamma: float = limited(0.5, above=0, below=1)
    every: int = limited(100, at_least=1)


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
    length: GuidanceLengthConfig = field(default_factory=GuidanceLengthConfig)
    loss_on_guidance: bool = False
    min_continuation: int = limited(512, at_least=1)
    stop_before_answer: bool = True
    missing_trace: Literal["error", "skip_guidance"] = "error"
