"""The block ``s2l.curriculum``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from s2l_ext.config.limits import limited

CURRICULA = ("gaussian", "uniform", "easy_to_hard", "file_order")


@dataclass(frozen=True)
class CurriculumConfig:
    """Which prompts a step trains on.

    ``type`` is one of :data:`CURRICULA`, an entry point of the group ``s2l.curricula`` or ``pkg.module:Class``, which
    gets ``options``. ``estimate_from``: whose rows estimate pass rates, the learner's without guidance,
    all of the learner's, or all. ``tier_order`` lists tiers, easiest first; None sorts
    numbers. ``warm_start`` is a file of start values (columns ``prompt_id``, ``pass_rate``).
    """

    type: str = "gaussian"
    center: float = limited(0.5, at_least=0, at_most=1)
    sigma: float = limited(0.35, above=0)
    ema: float = limited(0.9, at_least=0, below=1)
    estimate_from: Literal["learner_unguided", "learner", "all"] = "learner_unguided"
    tier_column: str = "tier"
    tier_order: list[Any] | None = None
    warm_start: str | None = None
    on_mismatch: Literal["error", "reset"] = "error"
    options: dict[str, Any] = field(default_factory=dict)
